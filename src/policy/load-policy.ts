import { sortIssues } from '../config/issue.ts';
import type { Issue } from '../config/issue.ts';
import { parseYaml } from '../config/yaml-document.ts';
import type { SourceDocument } from '../config/yaml-document.ts';
import type { PolicyRevision } from '../domain/policy.ts';
import type { KnownNames } from './known-names.ts';
import { compileSources } from './compile.ts';
import { fingerprint, listPolicyFiles, readPolicyFile } from './read-directory.ts';

export type LoadResult =
  | {
      ok: true;
      revision: PolicyRevision;
      /** What the revision was made of, and the PolicyTest documents beside it. */
      sources: readonly SourceDocument[];
      tests: readonly SourceDocument[];
    }
  | { ok: false; issues: readonly Issue[] };

/** Reads, checks and compiles a policy directory; all mistakes of all files at once. */
export async function loadPolicyDirectory(directory: string, known: KnownNames = {}): Promise<LoadResult> {
  return (await loadWithFingerprint(directory, known)).result;
}

/** The fingerprint is of before the reading, so that a change during it is seen as a change after it. */
export async function loadWithFingerprint(
  directory: string,
  known: KnownNames,
): Promise<{ result: LoadResult; fingerprint: string }> {
  const listing = await listPolicyFiles(directory);
  const issues = [...listing.issues];
  const sources: SourceDocument[] = [];
  for (const listed of listing.files) {
    try {
      // One file at a time: parsing is synchronous, and calls are answered in between.
      const parsed = parseYaml(listed.file, await readPolicyFile(listed));
      issues.push(...parsed.issues);
      sources.push(...parsed.documents);
    } catch (error) {
      issues.push({ file: listed.file, line: 1, column: 1, path: '', message: (error as Error).message });
    }
  }
  if (sources.length === 0 && issues.length === 0) {
    issues.push({
      file: directory,
      line: 1,
      column: 1,
      path: '',
      message: 'holds no policy documents',
      hint: 'add *.yaml files with Agent, Tool and Policy documents',
    });
  }
  return { result: conclude(sources, issues, known), fingerprint: fingerprint(listing) };
}

/** The same for files that are not on this machine: those of an ApplyPolicy request. */
export function loadPolicyTexts(files: readonly { file: string; text: string }[], known: KnownNames): LoadResult {
  const parsed = files.map(({ file, text }) => parseYaml(file, text));
  return conclude(
    parsed.flatMap(({ documents }) => documents),
    parsed.flatMap(({ issues }) => issues),
    known,
  );
}

function conclude(sources: readonly SourceDocument[], issues: readonly Issue[], known: KnownNames): LoadResult {
  // A file that does not parse hides documents that others name; only its own mistake is worth telling then.
  const hidden = issues.length > 0;
  const compiled = compileSources(sources, known);
  if ('revision' in compiled && !hidden) return { ok: true, ...compiled };
  const found = 'issues' in compiled ? compiled.issues : [];
  const told = hidden
    ? found.filter((issue) => !/(^|: )there is no (agent|tool|list|condition) /.test(issue.message))
    : found;
  return { ok: false, issues: sortIssues([...issues, ...told]) };
}
