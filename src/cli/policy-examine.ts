import { resolve } from 'node:path';
import { policyNames } from '../config/check-config.ts';
import type { Config, TenantConfig } from '../config/config.ts';
import type { Issue } from '../config/issue.ts';
import { sortIssues } from '../config/issue.ts';
import { readConfig } from '../config/load-config.ts';
import { defaultTenant } from '../config/tenant.ts';
import { advise } from '../policy/advise.ts';
import type { KnownNames } from '../policy/known-names.ts';
import { loadPolicyDirectory } from '../policy/load-policy.ts';
import type { LoadResult } from '../policy/load-policy.ts';
import { checkTests } from '../policy/run-tests.ts';
import { CliError } from './cli-error.ts';
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
  tenantName?: string,
  now = Date.now(),
): Promise<Examined> {
  const config =
    configFile === undefined
      ? undefined
      : (await startup(async () => readConfig({ path: resolve(configFile), env: process.env }))).config;
  const tenant = config && tenantOf(config, tenantName ?? defaultTenant);
  // Policy that is kept in the database has no folder; the one here is then the likely candidate.
  const configured = tenant?.policy.source === 'directory' ? tenant.policy.directory : undefined;
  const directory = given ?? configured ?? 'policy';
  const known: KnownNames = tenant === undefined ? {} : policyNames(config!, tenant);
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

function tenantOf(config: Config, name: string): TenantConfig {
  const tenant = config.tenants.find((one) => one.name === name);
  if (tenant !== undefined) return tenant;
  const known = config.tenants.map((one) => one.name).join(', ');
  throw new CliError('usage', `--tenant: ${config.file} has no tenant ${name}; it has ${known}`, { reason: 'USAGE' });
}
