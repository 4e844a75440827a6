import { mkdir, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { stringify } from 'yaml';
import { prepareVaultDatabase } from './vault-database.ts';
import { startVaultServer, type VaultServer, type VaultStorage } from './vault-server.ts';

/** A development Vault beside a development broker, set up as docs/vault.md says for a real one. */
export interface DevVault {
  server: VaultServer;
  /** Section `vault` of the broker's configuration. The files that it names are made by `prepare`. */
  section: Record<string, object>;
  /** Database engine, token role, policies and the broker's own login; and a tool in the policy directory that uses them. */
  prepare(target: { superuserUrl: string; database: string; policyDir: string }): Promise<void>;
  stop(): Promise<void>;
}

export interface DevVaultOptions {
  dir: string;
  binary: string;
  port?: number;
  storage?: VaultStorage;
}

const serverName = 'dev';
const brokerName = 'leasehold-broker';
const taskName = 'leasehold-task';
/** In the policy directory. Written at each start, because the database's port is in it; gone without a Vault. */
const policyFile = 'vault.yaml';

export async function startDevVault(options: DevVaultOptions): Promise<DevVault> {
  const dir = path.join(options.dir, 'vault');
  await mkdir(options.dir, { recursive: true });
  const { binary, port, storage = 'file' } = options;
  const server = await startVaultServer({ binary, dir, storage, ...(port === undefined ? {} : { port }) });
  const [roleIdFile, secretIdFile] = [path.join(dir, 'role-id'), path.join(dir, 'secret-id')];
  return {
    server,
    section: {
      [serverName]: {
        address: server.address,
        login: { method: 'approle', roleIdFile, secretIdFile },
        tokenRole: taskName,
      },
    },
    prepare: async ({ superuserUrl, database, policyDir }) => {
      const { mount } = await prepareVaultDatabase(server, { superuserUrl, target: database });
      await prepareTokens(server, mount);
      const { roleId, secretId } = await prepareLogin(server);
      await writeFile(roleIdFile, roleId, { mode: 0o600 });
      await writeFile(secretIdFile, secretId, { mode: 0o600 });
      await writeFile(path.join(policyDir, policyFile), documents(new URL(superuserUrl), database, mount));
    },
    stop: () => server.stop(),
  };
}

/** A policy that names a Vault which is not there would be refused. */
export async function forgetDevVault(policyDir: string): Promise<void> {
  await rm(path.join(policyDir, policyFile), { force: true });
}

/** What a task's token may do, and what the broker may do with such tokens: make them, keep them alive, end them. */
async function prepareTokens(vault: VaultServer, mount: string): Promise<void> {
  await vault.root('PUT', `sys/policies/acl/${taskName}`, {
    policy: policy({ [`${mount}/creds/*`]: ['read'] }),
  });
  await vault.root('POST', `auth/token/roles/${taskName}`, {
    allowed_policies: [taskName],
    token_no_default_policy: true,
    orphan: true,
    renewable: true,
    token_type: 'service',
    token_period: '60s',
  });
  await vault.root('PUT', `sys/policies/acl/${brokerName}`, {
    policy: policy({
      [`auth/token/create/${taskName}`]: ['update'],
      'auth/token/lookup-accessor': ['update'],
      'auth/token/renew-accessor': ['update'],
      'auth/token/revoke-accessor': ['update'],
      'auth/token/accessors/*': ['list', 'sudo'],
      'sys/leases/lookup': ['update'],
      'sys/leases/renew': ['update'],
      'sys/leases/revoke': ['update'],
      [`sys/leases/lookup/${mount}/*`]: ['list', 'sudo'],
    }),
  });
}

async function prepareLogin(vault: VaultServer): Promise<{ roleId: string; secretId: string }> {
  const methods = await vault.root('GET', 'sys/auth');
  if (methods['approle/'] === undefined) await vault.root('POST', 'sys/auth/approle', { type: 'approle' });
  const role = `auth/approle/role/${brokerName}`;
  await vault.root('POST', role, { token_policies: [brokerName], token_ttl: '20m', token_max_ttl: '24h' });
  const { role_id: roleId } = await vault.root<{ role_id: string }>('GET', `${role}/role-id`);
  const { secret_id: secretId } = await vault.root<{ secret_id: string }>('POST', `${role}/secret-id`);
  return { roleId, secretId };
}

function policy(paths: Record<string, string[]>): string {
  return Object.entries(paths)
    .map(([at, capabilities]) => `path "${at}" { capabilities = ${JSON.stringify(capabilities)} }`)
    .join('\n');
}

function documents(postgres: URL, database: string, mount: string): string {
  const login = { host: postgres.hostname, port: Number(postgres.port || 5432), database, sslmode: 'disable' };
  const owner = 'data-platform@leasehold.test';
  const tool = {
    apiVersion: 'leasehold.dev/v1',
    kind: 'Tool',
    metadata: {
      name: 'ledger',
      owner,
      description: "The sales database again; here Vault's database engine makes the logins, each under a lease.",
    },
    spec: {
      resource: 'https://ledger.dev.leasehold.test',
      tiers: {
        read: {
          provider: 'vault',
          revocation: 'immediate',
          ttl: { min: '1m', default: '5m', max: '10m' },
          actions: ['select'],
          vault: { server: serverName, mount, path: 'creds/read', sweep: 'creds/sweep', login },
        },
      },
    },
  };
  const rule = { name: 'ledger-read', agents: ['analyst'], tools: ['ledger'], tiers: ['read'], effect: 'allow' };
  const allow = {
    apiVersion: 'leasehold.dev/v1',
    kind: 'Policy',
    metadata: { name: 'ledger', owner, description: 'The analyst reads the ledger.' },
    spec: { rules: [{ ...rule, obligations: { ttl: '5m', renewal: { maxAge: '1h' } } }] },
  };
  const note = '# Made by `leasehold dev --vault` at each start, and taken away at a start without --vault.';
  return [note, stringify(tool), '---', stringify(allow)].join('\n');
}
