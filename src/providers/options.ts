/** One thing wrong with a tier's options; `path` continues the path of the document, e.g. `tiers.read.options.target`. */
export interface OptionIssue {
  path: string;
  message: string;
}
