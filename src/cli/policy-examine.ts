import { resolve } from 'node:path';
import { policyNames } from '../config/check-config.ts';
import type { Issue } from '../config/issue.ts';
import { sortIssues } from '../config/issue.ts';
import { readConfig } from '../config/load-config.ts';
import { advise } from '../policy/advise.ts';
import type { KnownNames } from '../policy/known-names.ts';
import { loadPolicyDirectory } from '../policy/load-policy.ts';
import type { LoadResult } from '../policy/load-policy.ts';
import { checkTests } from '../policy/run-tests.ts';
import { startup } from './startup.ts';

export interface Examined {
  directory: string;
  known: KnownNames;
  result: LoadResult;
  issues: readonly Issue[];
  warnings: readonly Issue[];
}

/** A folder of policy documents, by itself or with the names that a configuration defines. */
export async function examinePolicy(
  given: string | undefined,
  configFile: string | undefined,
  now = Date.now(),
): Promise<Examined> {
  const config =
    configFile === undefined
      ? undefined
      : (await startup(async () => readConfig({ path: resolve(configFile), env: process.env }))).config;
  // Policy that is kept in the database has no folder; the one here is then the likely candidate.
  const configured = config?.policy.source === 'directory' ? config.policy.directory : undefined;
  const directory = given ?? configured ?? 'policy';
  const known: KnownNames = config === undefined ? {} : policyNames(config);
  const result = await loadPolicyDirectory(directory, known);
  if (!result.ok) return { directory, known, result, issues: result.issues, warnings: [] };
  const { revision, sources, tests } = result;
  return {
    directory,
    known,
    result,
    issues: sortIssues(checkTests(tests, sources, revision)),
    warnings: sortIssues(advise(sources, revision, now)),
  };
}
