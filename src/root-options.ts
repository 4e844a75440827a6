import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { TenantBoundsOf } from './api/chain/tenant-share.ts';
import { createJwtSvidAttestor } from './attestors/jwt-svid/attestor.ts';
import { fileBundle } from './attestors/jwt-svid/file-bundle.ts';
import { httpsBundle } from './attestors/jwt-svid/https-bundle.ts';
import { createOidcAttestor } from './attestors/oidc/attestor.ts';
import type { Config, TargetConfig, VaultLoginConfig } from './config/config.ts';
import { readSealingKey, readWebhookSecret } from './config/secret-source.ts';
import { defaultTenant } from './config/tenant.ts';
import { workloadIndex } from './config/workload-pattern.ts';
import type { Attestor } from './domain/attestor.ts';
import { markLength, type InstallationMark } from './domain/ids.ts';
import type { Clock } from './domain/time.ts';
import type { VaultLogin } from './providers/vault/login.ts';
import type { VaultServer } from './providers/vault/server.ts';
import { revokeTimeout } from './root-bounds.ts';

// What the configuration says, in the words of the parts that root.ts wires.

export function sealingKey(config: Config): Uint8Array {
  if (config.keys.sealingKey === undefined) {
    throw new Error(
      `${config.file}: keys.sealingKeyFile or keys.sealingKeyEnv: is required to serve; make a key with \`openssl rand -base64 32\``,
    );
  }
  return readSealingKey(config.keys.sealingKey);
}

/**
 * An installation is its issuer: all replicas have the same one, no two installations can (their tokens could not be told
 * apart), and it is in no database that is restored or cloned.
 */
export function installationMark(config: Config): InstallationMark {
  return createHash('sha256')
    .update(`leasehold installation ${config.broker.issuer}`)
    .digest('hex')
    .slice(0, markLength);
}

export function attestors(config: Config, clock: Clock): Attestor[] {
  const { attestation } = config;
  const timeout = 5_000;
  return [
    ...attestation.trustDomains.map((domain) =>
      createJwtSvidAttestor({
        trustDomain: domain.name,
        tenant: domain.tenant,
        audiences: [...domain.audiences],
        bundle:
          'file' in domain.bundle
            ? fileBundle({ path: domain.bundle.file, clock, staleAfter: domain.staleAfter })
            : httpsBundle({ ...domain.bundle, clock, staleAfter: domain.staleAfter, minRefresh: 30_000, timeout }),
        maxLifetime: domain.maxTokenLifetime,
        skew: attestation.clockSkew,
      }),
    ),
    ...attestation.oidc.map((provider) =>
      createOidcAttestor({
        issuer: provider.issuer,
        tenant: provider.tenant,
        audiences: [...provider.audiences],
        requiredClaims: Object.fromEntries(
          Object.entries(provider.requiredClaims).map(([claim, values]) => [claim, [...values]]),
        ),
        workload: provider.workload,
        maxLifetime: provider.maxTokenLifetime,
        skew: attestation.clockSkew,
        staleAfter: provider.staleAfter,
        groupsClaim: provider.groupsClaim,
        jwksUri: provider.jwksUri,
        caFile: provider.caFile,
        clock,
        timeout,
      }),
    ),
  ];
}

export function groupsOf(config: Config) {
  const byTenant = new Map(
    config.tenants.map(({ name, groups }) => [
      name,
      workloadIndex(
        Object.entries(groups).flatMap(([group, patterns]) =>
          patterns.map((pattern): [string, string] => [pattern, group]),
        ),
      ),
    ]),
  );
  return ({ tenant, workload }: { tenant: string; workload: string }) => byTenant.get(tenant)?.(workload) ?? noGroups;
}

const noGroups: ReadonlySet<string> = new Set();

/** Whose a component of the status is, by its name; the others are everybody's. */
export function componentOwners({
  tenants,
  targets,
  vault,
  attestation,
  signals,
}: Config): ReadonlyMap<string, string> {
  const ownerOf = (section: 'targets' | 'vault', name: string) =>
    tenants.find((tenant) => tenant[section].includes(name))?.name ?? defaultTenant;
  return new Map([
    ...Object.keys(targets).map((name): [string, string] => [`provider/postgres/${name}`, ownerOf('targets', name)]),
    ...Object.keys(vault).map((name): [string, string] => [`provider/vault/${name}`, ownerOf('vault', name)]),
    ...attestation.trustDomains.map(({ name, tenant }): [string, string] => [`trust-domain/${name}`, tenant]),
    ...attestation.oidc.map(({ issuer, tenant }): [string, string] => [`issuer/${issuer}`, tenant]),
    ...signals.transmitters.map(({ name, tenant }): [string, string] => [`transmitter/${name}`, tenant]),
  ]);
}

/**
 * The name under which messages to an endpoint wait. That of another tenant's endpoint is one that no endpoint of the default
 * tenant can have, so that a release which knows only those leaves its messages alone.
 */
const endpointName = (tenant: string, hook: string) => (tenant === defaultTenant ? hook : `${tenant}/${hook}`);

/** Whose notices go where: to the tenant's own endpoints, and nowhere else. */
export function webhooksOf({ tenants }: Config): (tenant: string) => readonly string[] {
  const names = new Map(
    tenants.map(({ name, webhooks }) => [name, webhooks.map((hook) => endpointName(name, hook.name))]),
  );
  return (tenant) => names.get(tenant) ?? [];
}

export function webhookEndpoints({ tenants }: Config) {
  return tenants.flatMap(({ name, webhooks }) =>
    webhooks.map((hook) => ({
      name: endpointName(name, hook.name),
      url: hook.url,
      secrets: () =>
        [hook.secret, ...(hook.previousSecret === undefined ? [] : [hook.previousSecret])].map(readWebhookSecret),
      timeoutMs: hook.timeout,
      ca: hook.caFile === undefined ? undefined : readFileSync(hook.caFile, 'utf8'),
    })),
  );
}

/** Where there is one tenant, nobody else could be starved. */
export function tenantBounds({ tenants }: Config): TenantBoundsOf {
  const bounds = new Map(tenants.length === 1 ? [] : tenants.map(({ name, limits }) => [name, limits]));
  return (tenant) => bounds.get(tenant);
}

export function postgresTargets(targets: Readonly<Record<string, TargetConfig>>) {
  return Object.fromEntries(
    Object.entries(targets).map(([name, target]) => [
      name,
      {
        host: target.connect.host,
        port: target.connect.port,
        connectHost: target.host,
        connectPort: target.port,
        database: target.database,
        user: target.user,
        password: target.password.read(),
        sslmode: target.sslmode,
        ...(target.caFile === undefined ? {} : { ca: readFileSync(target.caFile, 'utf8') }),
        poolSize: target.poolSize,
        issueTimeout: target.issueTimeout,
        revokeTimeout,
        ...(target.grantor === undefined ? {} : { grantor: target.grantor }),
        ...(target.reassignTo === undefined ? {} : { reassignTo: target.reassignTo }),
      },
    ]),
  );
}

export function vaultServers(servers: Config['vault']): Record<string, VaultServer> {
  return Object.fromEntries(
    Object.entries(servers).map(([name, server]) => [
      name,
      {
        address: server.address,
        namespace: server.namespace,
        // Read when connections are opened, so that certificates are replaced while the broker runs.
        tls: () => ({
          ...(server.caFile === undefined ? {} : { ca: readFileSync(server.caFile, 'utf8') }),
          ...(server.clientCert === undefined
            ? {}
            : {
                cert: readFileSync(server.clientCert.certFile, 'utf8'),
                key: readFileSync(server.clientCert.keyFile, 'utf8'),
              }),
        }),
        login: vaultLogin(server.login),
        tokenRole: server.tokenRole,
        connections: server.connections,
        issueTimeout: server.issueTimeout,
        settleTimeout: server.settleTimeout,
      },
    ]),
  );
}

function vaultLogin(login: VaultLoginConfig): VaultLogin {
  const { method } = login;
  switch (method) {
    case 'kubernetes':
    case 'jwt':
      return { method, mount: login.mount, role: login.role, jwt: () => login.jwt.read() };
    case 'cert':
      return { method, mount: login.mount, role: login.role };
    case 'approle': {
      const { mount, roleId, secretId } = login;
      return { method, mount, roleId: () => roleId.read(), secretId: () => secretId.read() };
    }
    case 'tokenFile':
      return { method, token: () => login.token.read().trim() };
  }
}
