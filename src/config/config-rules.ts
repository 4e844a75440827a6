import { compileWorkloadTemplate } from '../attestors/oidc/workload-template.ts';
import { parseDuration } from './duration.ts';
import type { Issue } from './issue.ts';
import { isLoopback, splitListen } from './listen.ts';
import type { RawConfig, RawDoor, RawPolicySource, RawTenantLimits, RawTransmitter, RawWebhook } from './raw-config.ts';
import { formatPath, quote } from './schema.ts';
import { defaultTenant } from './tenant.ts';
import { vaultLoginFaults } from './vault-config.ts';
import { isWorkloadPattern, trustDomainOfPattern, workloadPatternHint } from './workload-pattern.ts';
import type { FieldPath, SourceDocument } from './yaml-document.ts';

type Report = (path: FieldPath, message: string, hint?: string) => void;

/**
 * What a schema cannot say: fields that depend on each other, and addresses that must be safe. Sections whose shape is
 * wrong are left out, the others are checked all the same, so that one run shows every mistake.
 */
export function checkConfigRules(document: SourceDocument, shape: readonly Issue[]): Issue[] {
  const config = document.value as RawConfig;
  const issues: Issue[] = [];
  const report: Report = (path, message, hint) => {
    const at = document.at(path);
    issues.push({
      file: document.file,
      ...at,
      path: formatPath(path),
      message,
      ...(hint === undefined ? {} : { hint }),
    });
  };
  if (typeof config !== 'object' || config === null) return issues;
  const sound = (section: keyof RawConfig, part = '') =>
    (config[section] !== undefined || section === 'database') &&
    !shape.some(({ path }) => {
      // A fault of the section itself (a field missing, not a map) is a fault of its every part.
      const whole = part === '' ? section : `${section}.${part}`;
      return path === section || path === whole || path.startsWith(`${whole}.`) || path.startsWith(`${whole}[`);
    });

  if (sound('broker')) checkUrl(report, ['broker', 'issuer'], config.broker.issuer, { loopbackHttp: true });
  if (sound('server', 'grpc')) checkDoor(report, ['server', 'grpc'], config.server.grpc);
  if (sound('server', 'http')) checkHttp(report, config.server.http);
  if (sound('server', 'grpc') && sound('server', 'http')) checkPorts(report, config);
  if (sound('server', 'limits')) checkLimits(report, config);
  if (sound('database')) checkDatabase(report, config);
  if (sound('keys')) checkKeys(report, config);
  if (sound('attestation')) checkAttestation(report, config);
  const domains = (tenant: string) => (sound('attestation') ? knownTrustDomains(config, tenant) : undefined);
  if (sound('access')) checkAccess(report, ['access'], config.access, domains(defaultTenant));
  if (sound('tenants')) {
    checkTenants(report, config, domains, (section) => (sound(section) ? Object.keys(config[section]) : undefined));
  }
  if (sound('tenants') && sound('server', 'limits')) {
    for (const [name, { limits }] of Object.entries(config.tenants)) {
      if (limits.burst === undefined && limits.callsPerSecond === undefined) continue;
      checkTenantLimits(report, ['tenants', name, 'limits'], config.server.limits.perTenant, limits);
    }
  }
  if (sound('attestation') && sound('tenants')) checkTenantNames(report, config, sound('signals'));
  if (sound('policy')) checkPolicySource(report, ['policy'], config.policy);
  if (sound('tasks')) order(report, config.tasks, ['tasks'], 'defaultTtl', 'maxTtl');
  if (sound('approvals')) {
    checkGroups(report, ['approvals', 'groups'], config.approvals.groups, domains(defaultTenant));
    checkWebhooks(report, ['approvals', 'webhooks'], config.approvals.webhooks);
  }
  if (sound('signals')) checkTransmitters(report, config.signals.transmitters);
  if (sound('targets')) checkTargets(report, config);
  if (sound('vault')) checkVault(report, config);
  return issues;
}

function checkVault(report: Report, { vault }: RawConfig): void {
  for (const [name, server] of Object.entries(vault)) {
    const path = ['vault', name];
    checkUrl(report, [...path, 'address'], server.address, { loopbackHttp: true });
    if ((server.certFile === undefined) !== (server.keyFile === undefined)) {
      report(path, 'a client certificate needs both certFile and keyFile');
    }
    const plain = server.address.startsWith('http:');
    if (plain && (server.caFile ?? server.certFile) !== undefined) {
      report(
        [...path, server.caFile === undefined ? 'certFile' : 'caFile'],
        'has no effect without https',
        'remove it, or use https',
      );
    }
    if (server.login.method === 'cert' && server.certFile === undefined) {
      report([...path, 'login', 'method'], 'needs a client certificate', 'add certFile and keyFile to the server');
    }
    for (const { field, message } of vaultLoginFaults(server.login)) {
      report(field === undefined ? [...path, 'login'] : [...path, 'login', field], message);
    }
  }
}

type Domains = ReadonlySet<string | undefined> | undefined;

function checkTenants(
  report: Report,
  { tenants }: RawConfig,
  domains: (tenant: string) => Domains,
  names: (section: 'targets' | 'vault') => readonly string[] | undefined,
): void {
  const takenBy = new Map<string, string>();
  for (const [name, tenant] of Object.entries(tenants)) {
    const path = ['tenants', name];
    checkPolicySource(report, [...path, 'policy'], tenant.policy);
    checkAccess(report, [...path, 'access'], tenant.access, domains(name));
    checkGroups(report, [...path, 'groups'], tenant.groups, domains(name));
    checkWebhooks(report, [...path, 'webhooks'], tenant.webhooks);
    for (const section of ['targets', 'vault'] as const) {
      tenant[section].forEach((one, index) => {
        const key = `${section} ${one}`;
        const other = takenBy.get(key);
        if (names(section)?.includes(one) === false) {
          report([...path, section, index], `there is no ${quote(one)} in ${section}`, `add it to ${section}`);
        } else if (other !== undefined) {
          report([...path, section, index], `${quote(one)} is tenant ${quote(other)}'s`, 'each is of one tenant');
        }
        takenBy.set(key, name);
      });
    }
  }
}

function checkTenantNames(report: Report, { attestation, tenants, signals }: RawConfig, withSignals: boolean): void {
  const known = [defaultTenant, ...Object.keys(tenants)];
  const check = (path: FieldPath, sources: readonly { tenant: string }[]) =>
    sources.forEach(({ tenant }, index) => {
      if (known.includes(tenant)) return;
      report(
        [...path, index, 'tenant'],
        `there is no tenant ${quote(tenant)}`,
        `add it to tenants, or use one of: ${known.join(', ')}`,
      );
    });
  check(['attestation', 'trustDomains'], attestation.trustDomains);
  check(['attestation', 'oidc'], attestation.oidc);
  if (withSignals) check(['signals', 'transmitters'], signals.transmitters);
}

function checkPolicySource(report: Report, path: FieldPath, policy: RawPolicySource): void {
  if (policy.source === 'directory' && policy.directory === undefined) {
    report(path, '"directory" is missing', 'name the folder of the policy documents, or say source: database');
  }
  if (policy.source === 'database' && policy.directory !== undefined) {
    report([...path, 'directory'], 'is not read with source: database', 'remove it, or say source: directory');
  }
}

function checkHttp(report: Report, http: RawConfig['server']['http']): void {
  checkDoor(report, ['server', 'http'], http);
  http.corsOrigins.forEach((origin, index) => {
    const url = URL.canParse(origin) ? new URL(origin) : undefined;
    if (url?.origin !== origin) {
      report(['server', 'http', 'corsOrigins', index], 'is not an origin', 'write it like https://console.acme.test');
    }
  });
}

function checkPorts(report: Report, { server: { grpc, http } }: RawConfig): void {
  if (grpc.listen === http.listen && !grpc.listen.endsWith(':0')) {
    report(['server', 'http', 'listen'], 'is the address of server.grpc too', 'give each door a port of its own');
  }
}

function checkLimits(report: Report, { server: { limits } }: RawConfig): void {
  order(report, limits, ['server', 'limits'], 'defaultDeadline', 'maxDeadline');
  if (limits.burst < limits.callsPerSecond) {
    report(['server', 'limits', 'burst'], 'is smaller than callsPerSecond, which could then never be reached');
  }
  checkTenantLimits(report, ['server', 'limits', 'perTenant'], limits.perTenant, {});
}

function checkTenantLimits(
  report: Report,
  path: FieldPath,
  common: RawTenantLimits,
  own: Partial<RawTenantLimits>,
): void {
  const { burst, callsPerSecond } = { ...common, ...own };
  if (burst >= callsPerSecond) return;
  const field = own.callsPerSecond === undefined || own.burst !== undefined ? 'burst' : 'callsPerSecond';
  report(
    [...path, field],
    field === 'burst'
      ? 'is smaller than callsPerSecond, which could then never be reached'
      : `is larger than burst (${burst}), and could then never be reached`,
  );
}

function checkDoor(report: Report, path: FieldPath, door: RawDoor): void {
  const { host, port } = splitListen(door.listen);
  if (port > 65_535) report([...path, 'listen'], 'has a port above 65535');
  if (door.tls === undefined && !door.allowPlaintext && !isLoopback(host)) {
    report(
      [...path, 'listen'],
      'would serve without TLS on an address that others can reach',
      'add tls, listen on 127.0.0.1, or say allowPlaintext: true if something in front does TLS',
    );
  }
}

function checkDatabase(report: Report, { database }: RawConfig): void {
  if (database?.url !== undefined) {
    const url = URL.canParse(database.url) ? new URL(database.url) : undefined;
    if (url === undefined || !/^postgres(ql)?:$/.test(url.protocol)) {
      report(
        ['database', 'url'],
        'is not a PostgreSQL URL',
        'write it like postgres://leasehold@db.acme.test/leasehold',
      );
    } else if (url.password !== '' || url.searchParams.has('password')) {
      report(
        ['database', 'url'],
        'has a password in it',
        'use urlFile or urlEnv; a secret may not be written in this file',
      );
    }
  }
}

function checkKeys(report: Report, { keys }: RawConfig): void {
  if (keys.sealingKeyFile !== undefined && keys.sealingKeyEnv !== undefined) {
    report(['keys', 'sealingKeyEnv'], 'is given together with sealingKeyFile', 'keep one of them');
  }
  order(report, keys, ['keys'], 'publishAhead', 'rotateEvery');
}

function checkAttestation(report: Report, config: RawConfig): void {
  const { trustDomains, oidc } = config.attestation;
  if (trustDomains.length === 0 && oidc.length === 0) {
    report(
      ['attestation'],
      'names no trust domain and no OIDC issuer, so that nobody could call',
      'add trustDomains or oidc',
    );
  }
  const names = new Set<string>();
  trustDomains.forEach((domain, index) => {
    const path = ['attestation', 'trustDomains', index];
    if (names.has(domain.name)) report([...path, 'name'], `${quote(domain.name)} is configured twice`);
    names.add(domain.name);
    if (domain.bundle.url !== undefined) checkUrl(report, [...path, 'bundle', 'url'], domain.bundle.url, {});
    else if (domain.bundle.caFile !== undefined) {
      report([...path, 'bundle', 'caFile'], 'has no effect with a bundle file', 'remove it, or use url');
    }
  });
  const issuers = new Set<string>();
  oidc.forEach((source, index) => {
    const path = ['attestation', 'oidc', index];
    if (issuers.has(source.issuer)) report([...path, 'issuer'], `${quote(source.issuer)} is configured twice`);
    issuers.add(source.issuer);
    checkUrl(report, [...path, 'issuer'], source.issuer, { loopbackHttp: true });
    if (source.jwksUri !== undefined) {
      checkUrl(report, [...path, 'jwksUri'], source.jwksUri, { loopbackHttp: true, query: true });
    }
    try {
      compileWorkloadTemplate(source.workload);
    } catch (error) {
      report([...path, 'workload'], (error as Error).message.replace(/^workload template .*?: /s, ''));
    }
  });
}

function checkTargets(report: Report, config: RawConfig): void {
  for (const [name, target] of Object.entries(config.targets)) {
    if (target.caFile !== undefined && target.sslmode === 'disable') {
      report(['targets', name, 'caFile'], 'has no effect with sslmode disable', 'use sslmode verify-full');
    }
  }
}

function checkGroups(report: Report, path: FieldPath, groups: Record<string, string[]>, domains: Domains): void {
  for (const [group, patterns] of Object.entries(groups)) {
    patterns.forEach((pattern, at) => {
      const fault = workloadPatternFault(pattern, domains);
      if (fault !== undefined) report([...path, group, at], ...fault);
    });
  }
}

function checkWebhooks(report: Report, section: FieldPath, webhooks: readonly RawWebhook[]): void {
  const names = new Set<string>();
  webhooks.forEach((hook, index) => {
    const path = [...section, index];
    if (names.has(hook.name)) report([...path, 'name'], `${quote(hook.name)} is configured twice`);
    names.add(hook.name);
    checkUrl(report, [...path, 'url'], hook.url, { loopbackHttp: true, query: true });
    if (hook.caFile !== undefined && hook.url.startsWith('http:')) {
      report([...path, 'caFile'], 'has no effect without https', 'remove it, or use https');
    }
  });
}

function checkTransmitters(report: Report, transmitters: readonly RawTransmitter[]): void {
  const seen = new Set<string>();
  transmitters.forEach((one, index) => {
    const path = ['signals', 'transmitters', index];
    for (const field of ['name', 'issuer'] as const) {
      const key = `${field} ${one[field]}`;
      if (seen.has(key)) report([...path, field], `${quote(one[field])} is configured twice`);
      seen.add(key);
    }
    checkUrl(report, [...path, 'issuer'], one.issuer, { loopbackHttp: true });
    if (one.jwksUri !== undefined)
      checkUrl(report, [...path, 'jwksUri'], one.jwksUri, { loopbackHttp: true, query: true });
    if (one.jwksUri !== undefined && one.jwksFile !== undefined) {
      report([...path, 'jwksFile'], 'has no effect beside "jwksUri"', 'keep one of them');
    }
    one.subjects.forEach(({ workload }, at) => {
      if (workload === undefined) return;
      try {
        compileWorkloadTemplate(workload);
      } catch (error) {
        report([...path, 'subjects', at, 'workload'], (error as Error).message);
      }
    });
  });
}

function checkAccess(report: Report, path: FieldPath, access: RawConfig['access'], domains: Domains): void {
  access.forEach((grant, index) => {
    grant.workloads.forEach((pattern, at) => {
      const fault = workloadPatternFault(pattern, domains);
      if (fault !== undefined) report([...path, index, 'workloads', at], ...fault);
    });
  });
}

/** Trust domains that an attested workload of the tenant can be in; `undefined` stands for workloads without a scheme. */
export function knownTrustDomains(
  {
    attestation: { trustDomains, oidc },
  }: {
    attestation: {
      trustDomains: readonly { name: string; tenant: string }[];
      oidc: readonly { workload: string; tenant: string }[];
    };
  },
  tenant: string,
): ReadonlySet<string | undefined> {
  const own = (source: { tenant: string }) => source.tenant === tenant;
  return new Set([
    ...trustDomains.filter(own).map((domain) => domain.name),
    ...oidc.filter(own).map((source) => trustDomainOfPattern(source.workload)),
  ]);
}

/** What is wrong with a pattern of workloads, if anything: its form, or that no caller could ever match it. */
export function workloadPatternFault(
  pattern: string,
  domains: ReadonlySet<string | undefined> | undefined,
): [message: string, hint: string] | undefined {
  if (!isWorkloadPattern(pattern))
    return [`${quote(pattern)} is not a workload or a pattern of workloads`, workloadPatternHint];
  const domain = trustDomainOfPattern(pattern);
  if (domains === undefined || domains.has(domain)) return undefined;
  const known = [...domains].filter((name) => name !== undefined).join(', ');
  return [
    domain === undefined
      ? 'no OIDC issuer gives workloads without a scheme'
      : `no trust domain ${quote(domain)} is configured`,
    `add it to the configuration's attestation, or use one of: ${known}`,
  ];
}

function checkUrl(
  report: Report,
  path: FieldPath,
  text: string,
  allow: { loopbackHttp?: boolean; query?: boolean },
): void {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || (url.protocol !== 'https:' && url.protocol !== 'http:')) {
    report(path, 'is not an https URL');
  } else if (url.username !== '' || url.password !== '') {
    report(path, 'has a login in it', 'a secret may not be written in this file');
  } else if (url.protocol === 'http:' && !(allow.loopbackHttp === true && isLoopback(url.hostname))) {
    report(path, 'is not an https URL', allow.loopbackHttp === true ? 'http is allowed on loopback only' : undefined);
  } else if (url.hash !== '' || text.includes('#') || (allow.query !== true && text.includes('?'))) {
    report(path, 'may have no query and no fragment');
  }
}

/** Both are durations that the schema has checked. */
function order<K extends string>(report: Report, of: Record<K, unknown>, path: FieldPath, less: K, more: K): void {
  if (parseDuration(String(of[less]))! > parseDuration(String(of[more]))!) {
    report([...path, less], `is longer than ${more} (${String(of[less])} > ${String(of[more])})`);
  }
}
