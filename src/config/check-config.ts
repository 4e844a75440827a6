import type { Issue } from './issue.ts';
import { ConfigError, sortIssues } from './issue.ts';
import { knownTrustDomains } from './config-rules.ts';
import type { Config, TenantConfig } from './config.ts';
import { readConfig } from './load-config.ts';
import type { LoadConfigOptions } from './load-config.ts';
import { formatPath } from './schema.ts';
import { fileProblem, readSealingKey, readWebhookSecret } from './secret-source.ts';
import { defaultTenant } from './tenant.ts';
import type { FieldPath, SourceDocument } from './yaml-document.ts';
import type { PolicyRevision } from '../domain/policy.ts';
import type { KnownNames } from '../policy/check-documents.ts';
import { loadPolicyDirectory } from '../policy/load-policy.ts';

export interface CheckConfigOptions extends LoadConfigOptions {
  /** False where secrets and certificates are not at hand, as in the CI of a repository of policies. */
  files?: boolean;
}

export type CheckResult =
  /** No revision for a tenant whose policy is not in a directory. */
  | { ok: true; issues: readonly []; config: Config; revisions: ReadonlyMap<string, PolicyRevision> }
  | { ok: false; issues: readonly Issue[] };

/** Everything that can be known before starting: the file, the policy, what each says of the other, and what both name. */
export async function checkConfig(options: CheckConfigOptions): Promise<CheckResult> {
  let read: ReturnType<typeof readConfig>;
  try {
    read = readConfig(options);
  } catch (error) {
    if (error instanceof ConfigError) return { ok: false, issues: error.issues };
    throw error;
  }
  const { config, document } = read;
  const issues = options.files === false ? [] : fileIssues(config, document);
  const revisions = new Map<string, PolicyRevision>();
  for (const tenant of config.tenants) {
    if (tenant.policy.source === 'database') continue;
    const policy = await loadPolicyDirectory(tenant.policy.directory, policyNames(config, tenant));
    if (policy.ok) revisions.set(tenant.name, policy.revision);
    else issues.push(...policy.issues);
  }
  if (issues.length > 0) return { ok: false, issues: sortIssues(issues) };
  return { ok: true, issues: [], config, revisions };
}

/** The names of a configuration that the tenant's policy may use; for `watchPolicy` and `loadPolicyDirectory`. */
export function policyNames(config: Config, tenant: TenantConfig): Required<KnownNames> {
  return {
    knownTargets: new Set(tenant.targets),
    knownVaults: new Set(tenant.vault),
    knownTrustDomains: knownTrustDomains(config, tenant.name),
    environment: config.environment,
  };
}

function fileIssues(config: Config, document: SourceDocument): Issue[] {
  const issues: Issue[] = [];
  const fail = (path: FieldPath, message: string, hint?: string) =>
    issues.push({
      file: document.file,
      ...document.at(path),
      path: formatPath(path),
      message,
      ...(hint === undefined ? {} : { hint }),
    });
  const file = (path: FieldPath, name: string | undefined) => {
    const problem = name === undefined ? undefined : fileProblem(name);
    if (problem !== undefined) fail(path, problem);
  };
  const secret = (path: FieldPath, read: () => unknown) => {
    try {
      read();
    } catch (error) {
      // The secret's own message begins with a name, which the path says already.
      fail(path, (error as Error).message.replace(/^[^ ]+: /, ''));
    }
  };
  /** Which of `xFile` and `xEnv` was written. */
  const written = (path: FieldPath, name: string): FieldPath => {
    const parent = path.reduce<unknown>((value, step) => (value as Record<string, unknown>)[step], document.value);
    return [...path, `${name}File` in (parent as object) ? `${name}File` : `${name}Env`];
  };

  for (const name of ['grpc', 'http'] as const) {
    file(['server', name, 'tls', 'certFile'], config.server[name].tls?.certFile);
    file(['server', name, 'tls', 'keyFile'], config.server[name].tls?.keyFile);
  }
  const { database, keys, attestation, targets, vault, tenants } = config;
  if (database !== undefined) {
    if (database.url.source !== 'inline') secret(written(['database'], 'url'), () => database.url.read());
    file(['database', 'caFile'], database.caFile);
  }
  const { sealingKey } = keys;
  if (sealingKey !== undefined) secret(written(['keys'], 'sealingKey'), () => readSealingKey(sealingKey));
  keys.previousSealingKeys.forEach((key, index) =>
    secret(['keys', 'previousSealingKeyFiles', index], () => readSealingKey(key)),
  );
  attestation.trustDomains.forEach(({ bundle }, index) => {
    const path = ['attestation', 'trustDomains', index, 'bundle'];
    if ('file' in bundle) file([...path, 'file'], bundle.file);
    else file([...path, 'caFile'], bundle.caFile);
  });
  attestation.oidc.forEach((source, index) => file(['attestation', 'oidc', index, 'caFile'], source.caFile));
  for (const [name, target] of Object.entries(targets)) {
    secret(written(['targets', name], 'password'), () => target.password.read());
    file(['targets', name, 'caFile'], target.caFile);
  }
  for (const [name, server] of Object.entries(vault)) {
    const path = ['vault', name];
    file([...path, 'caFile'], server.caFile);
    file([...path, 'certFile'], server.clientCert?.certFile);
    file([...path, 'keyFile'], server.clientCert?.keyFile);
    const { login } = server;
    const at = [...path, 'login'];
    // What the platform or an agent writes may come later than the configuration; what an operator writes may not.
    if (login.method === 'approle') {
      secret(written(at, 'roleId'), () => login.roleId.read());
      secret(written(at, 'secretId'), () => login.secretId.read());
    }
  }
  for (const { name, webhooks } of tenants) {
    const section = name === defaultTenant ? ['approvals'] : ['tenants', name];
    webhooks.forEach((hook, index) => {
      const path = [...section, 'webhooks', index];
      secret(written(path, 'secret'), () => readWebhookSecret(hook.secret));
      const { previousSecret } = hook;
      if (previousSecret !== undefined)
        secret(written(path, 'previousSecret'), () => readWebhookSecret(previousSecret));
      file([...path, 'caFile'], hook.caFile);
    });
  }
  return issues;
}
