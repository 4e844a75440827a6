import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { createEstate, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import { startVault, type TestVault } from '../support/vault.ts';
import { callers } from '../faults/support.ts';

export const brokerPolicy = `
path "auth/token/create/leasehold-task" { capabilities = ["update"] }
path "auth/token/lookup-accessor"       { capabilities = ["update"] }
path "auth/token/renew-accessor"        { capabilities = ["update"] }
path "auth/token/revoke-accessor"       { capabilities = ["update"] }
path "auth/token/accessors"             { capabilities = ["list", "sudo"] }
path "sys/leases/lookup"                { capabilities = ["update"] }
path "sys/leases/renew"                 { capabilities = ["update"] }
path "sys/leases/revoke"                { capabilities = ["update"] }
path "sys/leases/lookup/own/creds/read/" { capabilities = ["list", "sudo"] }
`;

export const taskPolicy = `
path "database/creds/*" { capabilities = ["read"] }
path "own/creds/*"      { capabilities = ["read"] }
path "short/creds/*"    { capabilities = ["read"] }
path "kv/data/app/*"    { capabilities = ["read"] }
path "pki/issue/agent"  { capabilities = ["update"] }
`;

/** What docs/vault.md asks an operator to make: policies, the token role, and a login for the broker. */
export async function prepareLeasehold(vault: TestVault, period = '60s') {
  await vault.root('POST', 'sys/policies/acl/leasehold-broker', { policy: brokerPolicy });
  await vault.root('POST', 'sys/policies/acl/leasehold-task', { policy: taskPolicy });
  await vault.root('POST', 'auth/token/roles/leasehold-task', {
    allowed_policies: ['leasehold-task'],
    orphan: true,
    renewable: true,
    token_period: period,
    token_type: 'service',
    token_no_default_policy: true,
  });
  await vault.root('POST', 'sys/auth/approle', { type: 'approle' });
  await vault.root('POST', 'auth/approle/role/leasehold', { token_policies: ['leasehold-broker'], token_ttl: '1h' });
  const { role_id: roleId } = await vault.root<{ role_id: string }>('GET', 'auth/approle/role/leasehold/role-id');
  const made = await vault.root<{ secret_id: string }>('POST', 'auth/approle/role/leasehold/secret-id');
  return { roleId, secretId: made.secret_id };
}

export interface VaultEstateOptions {
  storage?: 'inmem' | 'file' | 'raft';
  /** Of the tasks' tokens. */
  period?: string;
  /** Where the broker finds Vault, if not where it is. */
  address?: (vault: TestVault) => Promise<string>;
  /** Of the server in the configuration. */
  server?: object;
  /** More options of the tiers `ledger` and `own`. */
  tier?: string;
  config?: Record<string, object>;
}

export interface VaultEstate {
  estate: TestEstate;
  vault: TestVault;
  /** Logins that Vault's engine has made at the target, as the target itself says. */
  madeLogins(): Promise<string[]>;
  remove(): Promise<void>;
}

/** A broker's estate whose tools get their credentials from a real Vault, which makes logins on a real PostgreSQL. */
export async function createVaultEstate(label: string, options: VaultEstateOptions = {}): Promise<VaultEstate> {
  const { storage = 'inmem', period = '60s' } = options;
  const vault = await startVault({ storage });
  const { roleId, secretId } = await prepareLeasehold(vault, period);
  const address = options.address === undefined ? vault.address : await options.address(vault);
  const estate = await createEstate(label, {
    tasks: { renewalOverlap: '1s' },
    vault: {
      main: {
        address,
        login: { method: 'approle', roleIdEnv: `LH_ROLE_${label}`, secretIdEnv: `LH_SECRET_${label}` },
        issueTimeout: '2s',
        settleTimeout: '3s',
        ...options.server,
      },
    },
    ...options.config,
  });
  process.env[`LH_ROLE_${label}`] = roleId;
  process.env[`LH_SECRET_${label}`] = secretId;
  const { database: target } = estate.target;
  await vault.database({ target });
  await vault.database({ target, mount: 'own' });
  await vault.database({ target, mount: 'short', defaultTtl: 3, maxTtl: 9 });
  await vault.root('POST', 'sys/mounts/kv', { type: 'kv', options: { version: '2' } });
  await writeFile(path.join(estate.policyDir, 'vault.yaml'), policyFor(estate, options.tier));
  return {
    estate,
    vault,
    madeLogins: async () =>
      await asSuperuser(estate.targetUrl, async (client) => {
        const { rows } = await client.query<{ name: string }>(
          `SELECT rolname::text AS name FROM pg_roles WHERE rolname LIKE 'v-' || $1 || '-%' ORDER BY 1`,
          [target],
        );
        return rows.map(({ name }) => name);
      }),
    remove: async () => {
      await vault.remove();
      await estate.remove();
    },
  };
}

export const ledger = { tool: 'ledger', tier: Tier.READ };
/** Nobody else reads from its path, and Vault lets the broker list it. */
export const own = { tool: 'own', tier: Tier.READ };
/** Vault grants three seconds at first and nine at most. */
export const short = { tool: 'short', tier: Tier.READ };
export const settings = { tool: 'settings', tier: Tier.READ };
export const wrapped = { tool: 'settings', tier: Tier.WRITE };
/** Certificates of Vault's own authority. */
export const certificates = { tool: 'certificates', tier: Tier.READ };
export const all = [ledger, own, short, settings, wrapped, certificates];

export async function openVaultTask(estate: TestEstate, change: object = {}, port?: number): Promise<string> {
  const { task } = await callers(estate, port).orchestrator.openTask({
    requestId: crypto.randomUUID(),
    intent: 'vault test',
    agent: 'analyst',
    tools: all,
    ...change,
  });
  return task!.taskId;
}

function policyFor({ target: { host, port, database } }: TestEstate, more = ''): string {
  const login = `login: { host: ${host}, port: ${port}, database: ${database}, sslmode: disable }`;
  const tool = (name: string, tiers: string) => `---
apiVersion: leasehold.dev/v1
kind: Tool
metadata: { name: ${name}, owner: ${name}@leasehold.test }
spec:
  resource: https://${name}.dev.leasehold.test
  tiers:
${tiers}`;
  const tier = (name: string, revocation: string, ttl: string, vault: string) => `    ${name}:
      provider: vault
      revocation: ${revocation}
      ttl: ${ttl}
      vault: { server: main, ${vault} }
`;
  const also = more === '' ? login : `${login}, ${more}`;
  const usual = '{ min: 1s, default: 5m, max: 30m }';
  return [
    tool('ledger', tier('read', 'immediate', usual, `mount: database, path: creds/read, ${also}`)),
    tool('own', tier('read', 'immediate', usual, `mount: own, path: creds/read, exclusive: true, ${also}`)),
    tool('short', tier('read', 'immediate', usual, `mount: short, path: creds/read, ${login}`)),
    tool(
      'settings',
      tier('read', 'none', usual, 'mount: kv, path: data/app/settings, leaseless: true, endsWithin: 1h') +
        tier(
          'write',
          'bounded',
          usual,
          'mount: kv, path: data/app/settings, leaseless: true, endsWithin: 1h, responseWrapping: 60s',
        ),
    ),
    tool(
      'certificates',
      tier(
        'read',
        'bounded',
        usual,
        'mount: pki, path: issue/agent, method: write, leaseless: true, expiryField: expiration, ' +
          "parameters: { common_name: '{{agent}}.agents.test', ttl: '{{ttl}}' }",
      ),
    ),
    `---
apiVersion: leasehold.dev/v1
kind: Policy
metadata: { name: vault, owner: tests@leasehold.test }
spec:
  rules:
    - name: all
      agents: [analyst]
      tools: [ledger, own, short, settings, certificates]
      tiers: [read, write]
      effect: allow
      obligations: { ttl: 5m, renewal: { maxAge: 1h } }
`,
  ].join('');
}
