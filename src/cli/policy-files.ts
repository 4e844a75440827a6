import path from 'node:path';
import type { Issue } from '../config/issue.ts';
import { listPolicyFiles, readPolicyFile } from '../policy/read-directory.ts';
import { CliError } from './cli-error.ts';

export interface PolicyFileMessage {
  path: string;
  content: Uint8Array;
}

/** The policy files of a directory, by their paths within it. */
export async function readPolicyFiles(directory: string): Promise<PolicyFileMessage[]> {
  const { files, issues } = await listPolicyFiles(directory);
  if (issues.length > 0) throw policyInvalid(issues);
  if (files.length === 0) {
    throw new CliError('usage', `${directory} holds no policy documents (*.yaml); name their folder`, {
      reason: 'USAGE',
    });
  }
  return await Promise.all(
    files.map(async (listed) => ({
      path: path.relative(directory, listed.file).split(path.sep).join('/'),
      content: Buffer.from(await readPolicyFile(listed), 'utf8'),
    })),
  );
}

export function policyInvalid(issues: readonly Issue[]): CliError {
  const many = issues.length === 1 ? 'a mistake' : `${issues.length} mistakes`;
  return new CliError('configInvalid', `the policy has ${many}; mend what is listed and try again`, {
    reason: 'POLICY_INVALID',
    issues,
  });
}

/** Mistakes that the broker found, at their places in the files that were sent to it. */
export function placed(error: unknown, directory: string): unknown {
  if (!(error instanceof CliError) || error.details.reason !== 'POLICY_INVALID') return error;
  const issues = (error.details.violations ?? []).map(({ field, description }): Issue => {
    const [, file = field, line = '1', column = '1'] = /^(.*):(\d+):(\d+)$/.exec(field) ?? [];
    const place = path.join(directory, file);
    return { file: place, line: Number(line), column: Number(column), path: '', message: description };
  });
  return policyInvalid(issues);
}
