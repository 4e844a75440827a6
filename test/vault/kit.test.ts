import pg from 'pg';
import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { prepareSampleTarget } from '../../src/dev/sample-target.ts';
import { vaultErrors } from '../../src/dev/vault-request.ts';
import { asSuperuser } from '../support/postgres.ts';
import { describeVault, startVault, type TestVault } from '../support/vault.ts';

interface Login {
  username: string;
  password: string;
}

const target = `kit_${process.pid}`;

/** A login that Vault's database engine makes on the run's real PostgreSQL, with the lease that it is under. */
async function readLogin(vault: TestVault, mount = 'database'): Promise<Login & { leaseId: string }> {
  const path = `${mount}/creds/read`;
  const answer = await vault.request({ method: 'GET', path, token: vault.rootToken });
  if (answer.status !== 200) throw new Error(vaultErrors(answer));
  return { ...(answer.json['data'] as Login), leaseId: String(answer.json['lease_id']) };
}

async function orders({ username, password }: Login): Promise<number | string> {
  const url = new URL(inject('postgresUrl'));
  Object.assign(url, { pathname: `/${target}`, username, password });
  const client = new pg.Client({ connectionString: url.href, connectionTimeoutMillis: 10_000 });
  try {
    await client.connect();
    return (await client.query('SELECT FROM orders')).rowCount ?? 0;
  } catch (error) {
    return (error as pg.DatabaseError).code ?? String(error);
  } finally {
    await client.end();
  }
}

/** SQLSTATE invalid_password: also what PostgreSQL answers for a role that it does not know. */
const refused = '28P01';

beforeAll(async () => {
  await prepareSampleTarget(inject('postgresUrl'), target);
});

afterAll(async () => {
  await asSuperuser(inject('postgresUrl'), async (client) => {
    await client.query(`DROP DATABASE IF EXISTS ${target} WITH (FORCE)`);
    await client.query(`DROP ROLE IF EXISTS ${target}_leasehold`);
  });
});

describeVault('a Vault in memory', () => {
  let vault: TestVault;
  beforeAll(async () => {
    vault = await startVault();
    await vault.database({ target });
  });
  afterAll(async () => vault.remove());

  it('makes logins that really read, until their lease is revoked', async () => {
    const login = await readLogin(vault);
    expect(await orders(login)).toBe(3);
    await vault.root('PUT', 'sys/leases/revoke', { lease_id: login.leaseId, sync: true });
    expect(await orders(login)).toBe(refused);
  });

  it('ends the session of a login that it revokes', async () => {
    const login = await readLogin(vault);
    const url = new URL(inject('postgresUrl'));
    Object.assign(url, { pathname: `/${target}`, username: login.username, password: login.password });
    const session = new pg.Client({ connectionString: url.href });
    session.on('error', () => undefined);
    await session.connect();
    await vault.root('PUT', 'sys/leases/revoke', { lease_id: login.leaseId, sync: true });
    await expect(session.query('SELECT 1')).rejects.toThrow();
    await session.end();
  });

  it('takes the logins of a token away with it', async () => {
    await vault.root('PUT', 'sys/policies/acl/reader', {
      policy: 'path "database/creds/read" { capabilities = ["read"] }',
    });
    const made = await vault.request({
      method: 'POST',
      path: 'auth/token/create-orphan',
      token: vault.rootToken,
      body: { policies: ['reader'], period: '60s' },
    });
    const { client_token: token, accessor } = made.json['auth'] as { client_token: string; accessor: string };
    const answer = await vault.request({ method: 'GET', path: 'database/creds/read', token });
    const login = answer.json['data'] as Login;
    expect(await orders(login)).toBe(3);
    await vault.root('POST', 'auth/token/revoke-accessor', { accessor });
    await expect.poll(() => orders(login), { timeout: 30_000 }).toBe(refused);
  });

  it('has the engines and logins that providers are tested with', async () => {
    // OpenBao begins at 2.0, without the engines of clouds.
    const { json } = await vault.request({ method: 'GET', path: 'sys/health' });
    const clouds = String(json['version']).startsWith('1.') ? ['aws', 'gcp'] : [];
    for (const type of ['pki', 'transit', 'ssh', 'kv', 'rabbitmq', 'kubernetes', ...clouds]) {
      await vault.root('POST', `sys/mounts/t-${type}`, { type });
    }
    for (const type of ['approle', 'jwt', 'kubernetes', 'cert']) {
      await vault.root('POST', `sys/auth/t-${type}`, { type });
    }
  });

  it('answers nothing while it is frozen, and goes on afterwards', async () => {
    await vault.freeze();
    await expect(vault.request({ method: 'GET', path: 'sys/health', timeoutMs: 300 })).rejects.toThrow();
    vault.thaw();
    await vault.active();
  });
});

for (const storage of ['file', 'raft'] as const) {
  describeVault(`a Vault on ${storage} storage`, () => {
    let vault: TestVault;
    beforeAll(async () => {
      vault = await startVault({ storage, tls: storage === 'raft' });
      await vault.database({ target, mount: storage });
    });
    afterAll(async () => vault.remove());

    it('refuses while it is sealed, and knows its leases when it is unsealed', async () => {
      const { leaseId } = await readLogin(vault, storage);
      await vault.seal();
      expect((await vault.request({ method: 'GET', path: 'sys/health' })).status).toBe(503);
      await expect(readLogin(vault, storage)).rejects.toThrow('sealed');
      await vault.unseal();
      expect(await vault.root('PUT', 'sys/leases/lookup', { lease_id: leaseId })).toMatchObject({ id: leaseId });
    });

    it('comes back on the same address after it was killed, sealed, with everything that it knew', async () => {
      const login = await readLogin(vault, storage);
      await vault.kill();
      await expect(vault.request({ method: 'GET', path: 'sys/health' })).rejects.toThrow('ECONNREFUSED');
      await vault.start({ unseal: false });
      expect((await vault.request({ method: 'GET', path: 'sys/health' })).status).toBe(503);
      await vault.unseal();
      expect(await orders(login)).toBe(3);
      await vault.root('PUT', 'sys/leases/revoke', { lease_id: login.leaseId, sync: true });
      expect(await orders(login)).toBe(refused);
    });
  });
}

describeVault('a snapshot of a Vault on raft storage', () => {
  let vault: TestVault;
  beforeAll(async () => {
    vault = await startVault({ storage: 'raft' });
    await vault.database({ target, mount: 'snap' });
  });
  afterAll(async () => vault.remove());

  it('brings back a Vault that has never heard of what came later, while the target still has it', async () => {
    const before = await readLogin(vault, 'snap');
    const snapshot = await vault.snapshot();
    const after = await readLogin(vault, 'snap');
    await vault.restore(snapshot);
    expect(await vault.root('PUT', 'sys/leases/lookup', { lease_id: before.leaseId })).toMatchObject({
      id: before.leaseId,
    });
    await expect(vault.root('PUT', 'sys/leases/lookup', { lease_id: after.leaseId })).rejects.toThrow('invalid lease');
    expect(await orders(after)).toBe(3);
  });
});
