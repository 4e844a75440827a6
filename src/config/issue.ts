/** One mistake in a file, precise enough to put the cursor on it. Never holds a secret. */
export interface Issue {
  file: string;
  /** From 1. */
  line: number;
  /** From 1. */
  column: number;
  /** Field path such as `server.grpc.listen` or `spec.rules[0].when`; empty for the file as a whole. */
  path: string;
  message: string;
  /** What to do about it. */
  hint?: string;
}

/** `file:line:col: field: what is wrong; hint`, which editors and terminals turn into a link. */
export function formatIssue(issue: Issue): string {
  const field = issue.path === '' ? '' : ` ${issue.path}:`;
  const hint = issue.hint === undefined ? '' : `; ${issue.hint}`;
  return `${issue.file}:${issue.line}:${issue.column}:${field} ${issue.message}${hint}`;
}

/** Every mistake found, in the order of the file, so that one look is enough to mend them all. */
export class ConfigError extends Error {
  readonly issues: readonly Issue[];

  constructor(issues: readonly Issue[]) {
    const sorted = sortIssues(issues);
    super(sorted.map(formatIssue).join('\n'));
    this.name = 'ConfigError';
    this.issues = sorted;
  }
}

export function sortIssues(issues: readonly Issue[]): Issue[] {
  return [...issues].sort(
    (a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : 0) || a.line - b.line || a.column - b.column,
  );
}
