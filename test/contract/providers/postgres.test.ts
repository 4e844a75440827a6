import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { inspect } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ToolTier } from '../../../src/domain/policy.ts';
import type { Material } from '../../../src/domain/provider.ts';
import { createPostgresProvider } from '../../../src/providers/postgres/provider.ts';
import type { PostgresProvider } from '../../../src/providers/postgres/provider.ts';
import type { PostgresTarget } from '../../../src/providers/postgres/target.ts';
import { asSuperuser } from '../../support/postgres.ts';
import { failure, inventoryOf, makeGrant, newLeaseId, signal, targetProviderSuite } from '../provider-suite.ts';
import { login, readmeSql, startTargetCluster } from './target-cluster.ts';
import type { TargetCluster } from './target-cluster.ts';

let cluster: TargetCluster;
let provider: PostgresProvider;
const providers: PostgresProvider[] = [];

const tier = (change: Record<string, unknown> = {}): ToolTier => ({
  provider: 'postgres',
  revocation: 'immediate',
  ttl: { min: 1_000, default: 300_000, max: 900_000 },
  actions: [],
  options: { target: 'orders', groupRole: 'orders_read', ...change },
});
const read = tier();
const mark = 'abc123';
const write = tier({ groupRole: 'orders_write' });

beforeAll(async () => {
  cluster = await startTargetCluster();
  provider = open();
});

afterAll(async () => {
  await Promise.all(providers.map((each) => each.close()));
  await cluster.stop();
});

function open(change: Partial<PostgresTarget> = {}): PostgresProvider {
  const made = createPostgresProvider({
    targets: { orders: { ...cluster.target, ...change } },
    random: randomBytes,
    mark,
  });
  providers.push(made);
  return made;
}

type Login = Extract<Material, { kind: 'postgres_login' }>;

async function issued(which: ToolTier) {
  const grant = makeGrant(provider, which);
  const material = (await provider.issue(grant, signal())).material as Login;
  return { grant, handle: grant.lease.handle, material };
}

async function accepted(material: Material): Promise<boolean> {
  try {
    await (await login(material as Login)).end();
    return true;
  } catch (error) {
    // Shut or gone; anything else is a broken test.
    expect(['28P01', '28000']).toContain((error as { code?: string }).code);
    return false;
  }
}

const rolesLike = async (name: string) =>
  (await asSuperuser(cluster.url, (c) => c.query('SELECT rolname FROM pg_roles WHERE rolname = $1', [name]))).rowCount;

targetProviderSuite('postgres', async () => ({
  provider,
  tier: read,
  accepted,
  expiry: async (material) => {
    const { rows } = await asSuperuser(cluster.url, (c) =>
      c.query<{ until: Date }>('SELECT rolvaliduntil AS until FROM pg_roles WHERE rolname = $1', [
        (material as Login).username,
      ]),
    );
    return rows[0]!.until.getTime();
  },
  unreachable: () =>
    createPostgresProvider({ targets: { orders: { ...cluster.target, port: 1 } }, random: randomBytes, mark }),
}));

describe('a read login', () => {
  test('reads, cannot write, cannot become the group, has no attribute beyond LOGIN', async () => {
    const { material } = await issued(read);
    const client = await login(material);
    expect((await client.query('SELECT item FROM orders')).rows).toEqual([{ item: 'lamp' }]);
    for (const sql of [
      `INSERT INTO orders VALUES (2, 'x')`,
      'CREATE TABLE mine (id int)',
      'SET ROLE orders_read',
      'CREATE ROLE more',
      `ALTER ROLE ${material.username} VALID UNTIL 'infinity'`,
    ]) {
      expect((await failure(() => client.query(sql))) as { code?: string }).toMatchObject({ code: '42501' });
    }
    await client.end();
    const { rows } = await asSuperuser(cluster.url, (c) =>
      c.query('SELECT * FROM pg_roles WHERE rolname = $1', [material.username]),
    );
    expect(rows[0]).toMatchObject({
      rolsuper: false,
      rolcreaterole: false,
      rolcreatedb: false,
      rolreplication: false,
      rolbypassrls: false,
      rolconnlimit: 10,
    });
  });

  test('issued twice for one lease is one role, and the last password is the one that works', async () => {
    const grant = makeGrant(provider, read);
    const first = (await provider.issue(grant, signal())).material as Login;
    const second = (await provider.issue(grant, signal())).material as Login;
    expect(second.username).toBe(first.username);
    expect(await rolesLike(first.username)).toBe(1);
    expect(await accepted(first)).toBe(false);
    expect(await accepted(second)).toBe(true);
  });

  test('issued at the same moment by two replicas is one role', async () => {
    const grant = makeGrant(provider, read);
    const other = open();
    const results = await Promise.allSettled([provider, other, provider].map((each) => each.issue(grant, signal())));
    // One may lose to the other's uncommitted row; it may fail, but it never leaves two.
    expect(results.some(({ status }) => status === 'fulfilled')).toBe(true);
    expect(await rolesLike(grant.lease.handle.split('/')[1]!)).toBe(1);
  });

  test('that is being revoked stays shut when it is issued again', async () => {
    const grant = makeGrant(provider, read);
    await provider.issue(grant, signal());
    const role = grant.lease.handle.split('/')[1]!;
    await asSuperuser(cluster.url, (c) => c.query(`ALTER ROLE ${role} NOLOGIN`));
    expect(await accepted((await provider.issue(grant, signal())).material)).toBe(false);
  });
});

describe('revoking', () => {
  test('ends a session that is logged in, in the middle of a transaction (fault 9)', async () => {
    const { handle, material } = await issued(read);
    const client = await login(material);
    const ended = new Promise((resolve) => client.once('end', resolve));
    await client.query('BEGIN');
    await client.query('SELECT * FROM orders FOR KEY SHARE').catch(() => undefined);
    await provider.revoke(handle, signal());
    await ended;
    await failure(() => client.query('SELECT 1'));
    expect(await accepted(material)).toBe(false);
    const { rowCount } = await asSuperuser(cluster.url, (c) =>
      c.query(
        `SELECT FROM pg_stat_activity WHERE usename = $1 OR (backend_type = 'client backend' AND usesysid NOT IN (SELECT oid FROM pg_roles))`,
        [material.username],
      ),
    );
    expect(rowCount).toBe(0);
  });

  test('ends a session that is busy with a long query', async () => {
    const { handle, material } = await issued(read);
    const client = await login(material);
    const busy = failure(() => client.query('SELECT pg_sleep(60)'));
    await provider.revoke(handle, signal());
    expect((await busy).message).not.toBe('');
  });

  test('hands what the login owns to its group role and takes its grants away', async () => {
    const { handle, material } = await issued(write);
    const client = await login(material);
    await client.query(`CREATE TABLE kept_${material.username} AS SELECT 1 AS id`);
    await client.query(`GRANT SELECT ON kept_${material.username} TO orders_read`);
    await client.query(`CREATE FUNCTION f_${material.username}() RETURNS int LANGUAGE sql AS 'SELECT 1'`);
    await client.query('CREATE TEMP TABLE scratch (id int)');
    await client.end();
    await provider.revoke(handle, signal());
    expect(await rolesLike(material.username)).toBe(0);
    const { rows } = await asSuperuser(cluster.url, (c) =>
      c.query(`SELECT tableowner FROM pg_tables WHERE tablename = $1`, [`kept_${material.username}`]),
    );
    expect(rows).toEqual([{ tableowner: 'orders_write' }]);
    // What was borrowed to hand over is given back.
    const { rows: held } = await asSuperuser(cluster.url, (c) =>
      c.query(`SELECT inherit_option AS i, set_option AS s FROM pg_auth_members
                WHERE member = 'leasehold_admin'::regrole AND roleid = 'orders_write'::regrole`),
    );
    expect(held).toEqual([]);
  });

  test('many logins that own something, at once from two replicas, all go', async () => {
    const other = open();
    const logins = await Promise.all(Array.from({ length: 6 }, () => issued(write)));
    for (const { material } of logins) {
      const client = await login(material);
      await client.query(`CREATE TABLE many_${material.username} (id int)`);
      await client.end();
    }
    await Promise.all(
      logins.flatMap(({ handle }) => [provider.revoke(handle, signal()), other.revoke(handle, signal())]),
    );
    for (const { material } of logins) expect(await rolesLike(material.username)).toBe(0);
  });

  test('with an owner configured, hands over to that one', async () => {
    await asSuperuser(cluster.url, async (c) => {
      await c.query('CREATE ROLE archive NOLOGIN');
      await c.query('GRANT archive TO leasehold_grantor WITH ADMIN TRUE, INHERIT FALSE, SET FALSE');
      await c.query('GRANT CREATE ON SCHEMA public TO archive');
    });
    const { handle, material } = await issued(write);
    const client = await login(material);
    await client.query(`CREATE TABLE owned_${material.username} (id int)`);
    await client.end();
    await open({ reassignTo: 'archive' }).revoke(handle, signal());
    const { rows } = await asSuperuser(cluster.url, (c) =>
      c.query(`SELECT tableowner FROM pg_tables WHERE tablename = $1`, [`owned_${material.username}`]),
    );
    expect(rows).toEqual([{ tableowner: 'archive' }]);
  });

  test('that cannot be finished says what to do, leaves the login shut, and succeeds once that is done', async () => {
    const { handle, material } = await issued(write);
    await asSuperuser(cluster.otherUrl, (c) =>
      c.query(`CREATE TABLE far (id int); ALTER TABLE far OWNER TO ${material.username}`),
    );
    const error = await failure(() => provider.revoke(handle, signal()));
    expect(error).toMatchObject({ reason: 'PROVIDER_UNAVAILABLE' });
    expect(error.message).toMatch(/database other/);
    expect(error.message).toMatch(new RegExp(`REASSIGN OWNED BY and DROP OWNED BY ${material.username}`));
    expect(await accepted(material)).toBe(false);
    expect(await provider.exists(handle, signal())).toBe(true);
    await asSuperuser(cluster.otherUrl, (c) => c.query(`DROP OWNED BY ${material.username}`));
    await provider.revoke(handle, signal());
    expect(await rolesLike(material.username)).toBe(0);
  });

  test('names a prepared transaction that the login left behind', async () => {
    const { handle, material } = await issued(write);
    const client = await login(material);
    await client.query(`BEGIN; CREATE TABLE in_doubt (id int); PREPARE TRANSACTION 'it''s mine'`);
    await client.end();
    const error = await failure(() => provider.revoke(handle, signal()));
    expect(error.message).toContain(`ROLLBACK PREPARED 'it''s mine' in database orders`);
    expect(await accepted(material)).toBe(false);
    await asSuperuser(cluster.url, (c) => c.query(`ROLLBACK PREPARED 'it''s mine'`));
    await provider.revoke(handle, signal());
  });

  test('names a lock that another session holds on what the login owns, in bounded time', async () => {
    const { handle, material } = await issued(write);
    const client = await login(material);
    await client.query(`CREATE TABLE busy_${material.username} (id int)`);
    await client.end();
    await asSuperuser(cluster.url, async (blocker) => {
      await blocker.query(`BEGIN; LOCK TABLE busy_${material.username}`);
      expect((await failure(() => open({ revokeTimeout: 1_000 }).revoke(handle, signal()))).message).not.toBe('');
      expect(await accepted(material)).toBe(false);
      await blocker.query('ROLLBACK');
    });
    await provider.revoke(handle, signal());
    expect(await rolesLike(material.username)).toBe(0);
  });

  test('takes nothing but a lease’s own role', async () => {
    for (const handle of [
      'orders/postgres',
      'orders/orders_read',
      'orders/lh_x"; DROP TABLE orders; --',
      `orders/${'lh_' + 'A'.repeat(32)}`,
      'orders',
      '',
      `orders/lh_${'0'.repeat(32)}/more`,
    ]) {
      expect((await failure(() => provider.revoke(handle, signal()))).reason).toBe('FIELD_INVALID');
    }
    const unknown = `gone/lh_${'0'.repeat(32)}`;
    expect((await failure(() => provider.revoke(unknown, signal()))).reason).toBe('PROVIDER_UNAVAILABLE');
  });
});

describe('names that try to be SQL', () => {
  test('a lease id that is none gives no handle', () => {
    for (const leaseId of ['lse_x', `lse_${'0'.repeat(31)}'`, 'x"; DROP TABLE orders; --']) {
      expect(() => provider.handle(leaseId, read)).toThrow(/lease_id/);
    }
  });

  test('a group role with quotes in its name is quoted as the name that it is', async () => {
    const name = `odd"'; DROP TABLE orders; --`;
    await asSuperuser(cluster.url, async (c) => {
      await c.query(`CREATE ROLE ${pg.escapeIdentifier(name)} NOLOGIN`);
      await c.query(`GRANT ${pg.escapeIdentifier(name)} TO leasehold_grantor WITH ADMIN TRUE`);
    });
    const { handle, material } = await issued(tier({ groupRole: name }));
    const { rows } = await asSuperuser(cluster.url, (c) =>
      c.query(
        `SELECT g.rolname FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member WHERE r.rolname = $1`,
        [material.username],
      ),
    );
    expect(rows).toEqual([{ rolname: name }]);
    await provider.revoke(handle, signal());
    await asSuperuser(cluster.url, (c) => c.query('SELECT FROM orders'));
  });

  test('a group role that does not exist is told to the tool’s owner, and no login is left', async () => {
    const grant = makeGrant(provider, tier({ groupRole: 'nobody_here' }));
    const error = await failure(() => provider.issue(grant, signal()));
    expect(error).toMatchObject({ reason: 'PROVIDER_UNAVAILABLE' });
    expect(error.message).toMatch(/no role nobody_here/);
    expect(await provider.exists(grant.lease.handle, signal())).toBe(false);
  });

  test('a group role that the broker may not hand out is refused by the target', async () => {
    await asSuperuser(cluster.url, (c) => c.query('CREATE ROLE crown_jewels NOLOGIN'));
    const error = await failure(() =>
      provider.issue(makeGrant(provider, tier({ groupRole: 'crown_jewels' })), signal()),
    );
    expect(error.message).toMatch(/WITH ADMIN OPTION/);
  });
});

test('a target whose broker login hands out the groups itself, without a grantor, works alike', async () => {
  await asSuperuser(cluster.url, async (c) => {
    await c.query('CREATE ROLE direct NOLOGIN');
    await c.query('GRANT direct TO leasehold_admin WITH ADMIN TRUE, INHERIT FALSE, SET FALSE');
    await c.query('GRANT CREATE ON SCHEMA public TO direct');
  });
  const { grantor: _, ...target } = cluster.target;
  const plain = createPostgresProvider({ targets: { orders: target }, random: randomBytes, mark });
  providers.push(plain);
  const grant = makeGrant(plain, tier({ groupRole: 'direct' }));
  const material = (await plain.issue(grant, signal())).material as Login;
  const client = await login(material);
  await client.query('CREATE TABLE direct_made (id int)');
  await client.end();
  await plain.revoke(grant.lease.handle, signal());
  expect(await rolesLike(material.username)).toBe(0);
  const { rows } = await asSuperuser(cluster.url, (c) =>
    c.query(`SELECT tableowner FROM pg_tables WHERE tablename = 'direct_made'`),
  );
  expect(rows).toEqual([{ tableowner: 'direct' }]);
});

test('custom statements make the login that they describe', async () => {
  const { handle, material } = await issued(
    tier({
      statements: [
        'CREATE ROLE {{role}} LOGIN PASSWORD {{password}} VALID UNTIL {{expires}} CONNECTION LIMIT 2;',
        'GRANT {{group}} TO {{role}}',
        `ALTER ROLE {{role}} SET search_path = 'public'`,
        `COMMENT ON ROLE {{role}} IS 'made by leasehold'`,
      ],
    }),
  );
  const client = await login(material);
  expect((await client.query('SELECT count(*)::int AS n FROM orders')).rows).toEqual([{ n: 1 }]);
  await client.end();
  await provider.revoke(handle, signal());
  expect(await rolesLike(material.username)).toBe(0);
});

test('a target that takes the connection and never answers does not hold anyone up', async () => {
  const server = createServer(() => undefined);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const deaf = open({ port, issueTimeout: 200, revokeTimeout: 200 });
  const grant = makeGrant(deaf, read);
  expect((await failure(() => deaf.issue(grant, signal()))).reason).toBe('PROVIDER_UNAVAILABLE');
  expect((await failure(() => deaf.revoke(grant.lease.handle, signal()))).reason).toBe('PROVIDER_UNAVAILABLE');
  server.close();
});

test('a statement that reaches the target too late makes no login', async () => {
  // The target's clock as the provider sees it is fixed when its connection opens; a lock holds the statement up.
  const slow = open({ issueTimeout: 300, poolSize: 1 });
  const grant = makeGrant(slow, read);
  await asSuperuser(cluster.url, async (blocker) => {
    await blocker.query('BEGIN; LOCK TABLE pg_authid IN SHARE ROW EXCLUSIVE MODE');
    expect((await failure(() => slow.issue(grant, signal()))).reason).toBe('PROVIDER_UNAVAILABLE');
    await blocker.query('ROLLBACK');
  });
  await provider.revoke(grant.lease.handle, signal());
  expect(await provider.exists(grant.lease.handle, signal())).toBe(false);
});

test('TLS that is asked for and not there is refused, not done without', async () => {
  for (const sslmode of ['require', 'verify-ca', 'verify-full'] as const) {
    const tls = open({ sslmode });
    expect((await failure(() => tls.issue(makeGrant(tls, read), signal()))).reason).toBe('PROVIDER_UNAVAILABLE');
  }
});

test('a connection that the target closed is replaced without anyone noticing', async () => {
  await issued(read);
  await asSuperuser(cluster.url, (c) =>
    c.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'leasehold_admin'`),
  );
  const { material } = await issued(read);
  expect(await accepted(material)).toBe(true);
});

test('a retry for a live lease replaces its secret, and makes nothing where the target knows it no more', async () => {
  const first = await issued(read);
  const active = { ...first.grant, lease: { ...first.grant.lease, state: 'active' as const } };
  const again = (await provider.issue(active, signal())).material;
  expect(await accepted(again)).toBe(true);
  expect(await accepted(first.material)).toBe(false);
  await provider.revoke(first.handle, signal());
  await expect(provider.issue(active, signal())).rejects.toMatchObject({ reason: 'LEASE_ENDED' });
  expect(await provider.exists(first.handle, signal())).toBe(false);
});

test('the list of what a target holds says whose each login is, and names nothing but logins of leases', async () => {
  const marked = makeGrant(provider, read, { leaseId: newLeaseId().slice(0, -mark.length) + mark });
  await provider.issue(marked, signal());
  const unmarked = await issued(read);
  const strange = `lh_${newLeaseId().slice(4)}`;
  await asSuperuser(cluster.url, (c) => c.query(`CREATE ROLE ${strange}; CREATE ROLE lh_other`));
  const found = await inventoryOf(provider, 'orders', 3);
  const of = (handle: string) => found.find((each) => each.handle === handle);
  expect(of(marked.lease.handle)).toMatchObject({ leaseId: marked.lease.leaseId, owner: 'ours' });
  expect(of(unmarked.handle)).toMatchObject({ leaseId: unmarked.grant.lease.leaseId, owner: 'unmarked' });
  expect(of(`orders/${strange}`)).toMatchObject({ owner: 'other' });
  expect(of('orders/lh_other')).toBeUndefined();
});

test('status says whether the target can be used', async () => {
  expect(await provider.check(signal())).toEqual([
    { name: 'provider/postgres/orders', ready: true, detail: expect.stringMatching(/^PostgreSQL \d+$/) as string },
  ]);
  const wrong = open({ password: 'wrong-canary-password' });
  const [status] = await wrong.check(signal());
  expect(status).toMatchObject({ ready: false });
  expect(status!.detail).not.toContain('wrong-canary-password');
});

test('no password is in the target’s log, in an error, or in its cause (fault 23)', async () => {
  const grant = makeGrant(provider, read);
  const material = (await provider.issue(grant, signal())).material as Login;
  const again = (await provider.issue(grant, signal())).material as Login;
  await provider.revoke(grant.lease.handle, signal());
  const broken = makeGrant(
    provider,
    tier({
      statements: [
        'CREATE ROLE {{role}} LOGIN VALID UNTIL {{expires}} PASSWORD {{password}} {{password}}',
        'GRANT {{group}} TO {{role}}',
      ],
    }),
  );
  const error = await failure(() => provider.issue(broken, signal()));
  expect(inspect(error, { depth: 9, showHidden: true })).not.toMatch(/SCRAM-SHA-256/);
  expect(error.message).toMatch(/does not understand/);
  const log = cluster.log();
  expect(log).toContain(`CREATE ROLE "${material.username}"`);
  for (const secret of [material.password, again.password, cluster.target.password]) {
    expect(occurrences(log, secret)).toBe(secret === cluster.target.password ? 1 : 0);
  }
});

/** The admin's password stands once in the log: where the test, as a superuser, set it. */
function occurrences(text: string, part: string): number {
  return text.split(part).length - 1;
}

test('the README shows exactly the set-up that these tests run with', async () => {
  const readme = await readFile(new URL('../../../src/providers/postgres/README.md', import.meta.url), 'utf8');
  for (const line of readmeSql('…')
    .split('\n')
    .filter((each) => each !== ''))
    expect(readme).toContain(line);
});

test('a lease id names its role alone', () => {
  const leaseId = newLeaseId();
  const handle = provider.handle(leaseId, read);
  expect(handle).toBe(`orders/lh_${leaseId.slice(4)}`);
  expect(Buffer.byteLength(handle.split('/')[1]!)).toBeLessThanOrEqual(63);
});
