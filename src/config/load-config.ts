import { readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import type { Config, DoorConfig, PolicySourceConfig, TargetConfig, WebhookConfig } from './config.ts';
import { checkConfigRules } from './config-rules.ts';
import { parseDuration } from './duration.ts';
import { deepFreeze } from './freeze.ts';
import { ConfigError } from './issue.ts';
import type { Issue } from './issue.ts';
import { splitListen } from './listen.ts';
import type { RawConfig, RawDoor, RawPolicySource, RawTarget, RawWebhook } from './raw-config.ts';
import { defaultTenant, tenantPath } from './tenant.ts';
import { vaultConfig, type FileNames } from './vault-config.ts';
import { validateShape } from './schema.ts';
import { envSecret, fileSecret, fsReason, inlineValue } from './secret-source.ts';
import type { Environment, SecretSource } from './secret-source.ts';
import { parseYaml } from './yaml-document.ts';
import type { SourceDocument } from './yaml-document.ts';

const maxConfigBytes = 256 * 1024;

export interface LoadConfigOptions {
  path: string;
  /** Where `…Env` fields look. */
  env: Environment;
}

/** Reads and checks the file alone. Whether what it names exists is `checkConfig`'s question. Throws ConfigError. */
export function loadConfig(options: LoadConfigOptions): Config {
  return readConfig(options).config;
}

export function readConfig(options: LoadConfigOptions): { config: Config; document: SourceDocument } {
  const document = readDocument(options.path);
  const shape = validateShape('config', document);
  const issues = [...shape, ...checkConfigRules(document, shape)];
  if (issues.length > 0) throw new ConfigError(issues);
  return { config: deepFreeze(build(options.path, document.value as RawConfig, options.env)), document };
}

function readDocument(file: string): SourceDocument {
  const whole = (message: string, hint?: string): ConfigError =>
    new ConfigError([
      { file, line: 1, column: 1, path: '', message, ...(hint === undefined ? {} : { hint }) } as Issue,
    ]);
  let text: string;
  try {
    const stat = statSync(file);
    if (!stat.isFile()) throw whole('is not a file');
    if (stat.size > maxConfigBytes) throw whole(`is larger than ${maxConfigBytes} bytes`);
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw error instanceof ConfigError ? error : whole(fsReason(error), 'give the path of a leasehold.yaml');
  }
  const { documents, issues } = parseYaml(file, text);
  if (issues.length > 0) throw new ConfigError(issues);
  const [document, second] = documents;
  if (document === undefined) throw whole('holds no document');
  if (second !== undefined) {
    throw new ConfigError([{ file, ...second.at([]), path: '', message: 'holds a second document', hint: 'keep one' }]);
  }
  return document;
}

function build(file: string, raw: RawConfig, env: Environment): Config {
  const folder = path.dirname(path.resolve(file));
  const resolve = (relative: string) => path.resolve(folder, relative);
  const optional = (relative: string | undefined) => (relative === undefined ? undefined : resolve(relative));
  const secret = (
    field: string,
    fromFile: string | undefined,
    fromEnv: string | undefined,
  ): SecretSource | undefined => {
    if (fromFile !== undefined) return fileSecret(`${field}File`, resolve(fromFile));
    return fromEnv === undefined ? undefined : envSecret(`${field}Env`, fromEnv, env);
  };
  const door = (of: RawDoor): DoorConfig => ({
    ...splitListen(of.listen),
    tls: of.tls && { ...of.tls, certFile: resolve(of.tls.certFile), keyFile: resolve(of.tls.keyFile) },
    allowPlaintext: of.allowPlaintext,
  });
  const target = (name: string, of: RawTarget): TargetConfig => ({
    kind: of.kind,
    host: of.host,
    port: of.port,
    database: of.database,
    user: of.user,
    password: secret(`targets.${name}.password`, of.passwordFile, of.passwordEnv)!,
    sslmode: of.sslmode,
    caFile: optional(of.caFile),
    poolSize: of.poolSize,
    issueTimeout: millis(of.issueTimeout),
    grantor: of.grantor,
    reassignTo: of.reassignTo,
    connect: { host: of.connectHost ?? of.host, port: of.connectPort ?? of.port },
  });
  const files: FileNames = { resolve, optional, secret };
  const policySource = ({ source, directory }: RawPolicySource): PolicySourceConfig =>
    source === 'database' ? { source } : { source, directory: resolve(directory!) };
  const webhooks = (section: string, hooks: readonly RawWebhook[]): WebhookConfig[] =>
    hooks.map((hook) => {
      const field = `${section}.webhooks.${hook.name}`;
      return {
        name: hook.name,
        url: hook.url,
        secret: secret(`${field}.secret`, hook.secretFile, hook.secretEnv)!,
        previousSecret: secret(`${field}.previousSecret`, hook.previousSecretFile, hook.previousSecretEnv),
        timeout: millis(hook.timeout),
        caFile: optional(hook.caFile),
      };
    });
  const tenants = Object.entries(raw.tenants);
  /** What no other tenant has is the default one's. */
  const left = (section: 'targets' | 'vault') =>
    Object.keys(raw[section]).filter((name) => !tenants.some(([, tenant]) => tenant[section].includes(name)));
  const { server, database, keys, attestation, tasks, approvals } = raw;
  const { perTenant, ...limits } = server.limits;

  return {
    file: path.resolve(file),
    broker: { issuer: raw.broker.issuer },
    server: {
      grpc: door(server.grpc),
      http: { ...door(server.http), corsOrigins: server.http.corsOrigins },
      limits: {
        ...limits,
        maxDeadline: millis(limits.maxDeadline),
        defaultDeadline: millis(limits.defaultDeadline),
      },
      shutdownGrace: millis(server.shutdownGrace),
    },
    database: database && {
      url: secret('database.url', database.urlFile, database.urlEnv) ?? inlineValue(database.url!),
      poolSize: database.poolSize,
      caFile: optional(database.caFile),
    },
    keys: {
      sealingKey: secret('keys.sealingKey', keys.sealingKeyFile, keys.sealingKeyEnv),
      previousSealingKeys: keys.previousSealingKeyFiles.map((name, index) =>
        fileSecret(`keys.previousSealingKeyFiles[${index}]`, resolve(name)),
      ),
      rotateEvery: millis(keys.rotateEvery),
      publishAhead: millis(keys.publishAhead),
      algorithm: keys.algorithm,
    },
    attestation: {
      clockSkew: millis(attestation.clockSkew),
      trustDomains: attestation.trustDomains.map((domain) => ({
        name: domain.name,
        tenant: domain.tenant,
        audiences: attestation.audiences,
        maxTokenLifetime: millis(domain.maxTokenLifetime ?? attestation.maxTokenLifetime),
        bundle:
          domain.bundle.file === undefined
            ? { url: domain.bundle.url!, caFile: optional(domain.bundle.caFile) }
            : { file: resolve(domain.bundle.file) },
        staleAfter: millis(domain.staleAfter),
      })),
      oidc: attestation.oidc.map((source) => ({
        issuer: source.issuer,
        tenant: source.tenant,
        audiences: source.audiences ?? attestation.audiences,
        maxTokenLifetime: millis(source.maxTokenLifetime ?? attestation.maxTokenLifetime),
        requiredClaims: Object.fromEntries(
          Object.entries(source.requiredClaims).map(([claim, values]) => [claim, [values].flat().map(String)]),
        ),
        workload: source.workload,
        jwksUri: source.jwksUri,
        caFile: optional(source.caFile),
        staleAfter: millis(source.staleAfter),
        groupsClaim: source.groupsClaim,
      })),
    },
    tenants: [
      {
        name: defaultTenant,
        issuer: raw.broker.issuer,
        policy: policySource(raw.policy),
        access: raw.access,
        groups: approvals.groups,
        targets: left('targets'),
        vault: left('vault'),
        webhooks: webhooks('approvals', approvals.webhooks),
        limits: perTenant,
      },
      ...tenants.map(([name, tenant]) => ({
        name,
        issuer: `${raw.broker.issuer}${tenantPath(name)}`,
        policy: policySource(tenant.policy),
        access: tenant.access,
        groups: tenant.groups,
        targets: tenant.targets,
        vault: tenant.vault,
        webhooks: webhooks(`tenants.${name}`, tenant.webhooks),
        limits: { ...perTenant, ...tenant.limits },
      })),
    ],
    environment: { ...raw.environment },
    tasks: {
      defaultTtl: millis(tasks.defaultTtl),
      maxTtl: millis(tasks.maxTtl),
      settleBound: millis(tasks.settleBound),
      renewalOverlap: millis(tasks.renewalOverlap),
    },
    reconcile: { ...raw.reconcile, every: millis(raw.reconcile.every) },
    approvals: {
      maxPending: approvals.maxPending,
      requestsPerHour: approvals.requestsPerHour,
    },
    calls: { ...raw.calls },
    signals: {
      ...raw.signals,
      detectors: Object.fromEntries(
        Object.entries(raw.signals.detectors).map(([name, { window, keep, ...settings }]) => [
          name,
          { ...settings, window: millis(window), keep: keep === undefined ? undefined : millis(keep) },
        ]),
      ) as Config['signals']['detectors'],
      transmitters: raw.signals.transmitters.map((transmitter) => ({
        ...transmitter,
        jwksUri: transmitter.jwksUri,
        jwksFile: optional(transmitter.jwksFile),
        caFile: optional(transmitter.caFile),
        staleAfter: millis(transmitter.staleAfter),
        maxAge: millis(transmitter.maxAge),
        keep: millis(transmitter.keep),
        subjects: transmitter.subjects.map((rule) => ({
          ...rule,
          member: rule.member,
          workload: rule.workload,
          agent: rule.agent,
          owner: rule.owner,
        })),
      })),
    },
    locks: { maxTtl: millis(raw.locks.maxTtl), peopleToLift: raw.locks.peopleToLift },
    targets: Object.fromEntries(Object.entries(raw.targets).map(([name, of]) => [name, target(name, of)])),
    vault: Object.fromEntries(Object.entries(raw.vault).map(([name, of]) => [name, vaultConfig(name, of, files)])),
    log: raw.log,
  };
}

/** Only for texts that the schema has checked. */
function millis(text: string): number {
  return parseDuration(text)!;
}
