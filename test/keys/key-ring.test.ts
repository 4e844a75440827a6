import { createPublicKey, randomBytes, sign, verify } from 'node:crypto';
import { calculateJwkThumbprint } from 'jose';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { createSealer } from '../../src/keys/seal.ts';
import type { Sealer } from '../../src/keys/seal.ts';
import { createKeyRing } from '../../src/keys/signing-keys.ts';
import type { KeyRing } from '../../src/keys/signing-keys.ts';
import { migrate } from '../../src/storage/migrate.ts';
import { asSuperuser, createDatabase } from '../support/postgres.ts';
import type { TestDatabase } from '../support/postgres.ts';

const minute = 60_000;
const settings = {
  rotateEvery: 60 * minute,
  publishAhead: 12 * minute,
  maxTokenLife: 15 * minute,
  cacheAge: 10 * minute,
  skew: minute,
};
const sealingKey = randomBytes(32);
let database: TestDatabase;
let pool: pg.Pool;
let login: string;
let tenants = 0;
let tenant: string;
let now = 0;

beforeAll(async () => {
  database = await createDatabase('keys');
  await migrate(database.url);
  // The ring runs with what a broker has: membership in leasehold_broker and nothing else.
  login = `keys_${randomBytes(4).toString('hex')}`;
  const password = randomBytes(16).toString('hex');
  await asSuperuser(database.url, (c) =>
    c.query(`CREATE ROLE ${login} LOGIN PASSWORD '${password}' IN ROLE leasehold_broker`),
  );
  const { host, port, name } = database;
  pool = new pg.Pool({ host, port, database: name, user: login, password, max: 8 });
  // Databases are dropped with FORCE, maybe before the server has seen that a connection was closed.
  pool.on('error', () => undefined);
});

afterAll(async () => {
  await pool.end();
  await database.drop();
  await asSuperuser(new URL('/postgres', database.url).href, (c) => c.query(`DROP ROLE ${login}`));
});

beforeEach(() => {
  tenant = `t${(tenants += 1)}`;
  now = 1_800_000_000_000;
});

function ring(
  sealer: Sealer = createSealer({ current: sealingKey, random: randomBytes }),
  extra: object = {},
): KeyRing {
  return createKeyRing({ pool, sealer, clock: { now: () => now }, tenant, ...settings, ...extra });
}

const rows = async () =>
  (
    await asSuperuser(database.url, (c) =>
      c.query('SELECT kid, state, sealed_private FROM leasehold.signing_keys WHERE tenant = $1 ORDER BY activates_at', [
        tenant,
      ]),
    )
  ).rows as { kid: string; state: string; sealed_private: Buffer | null }[];

test('the first start makes one active key, named by its RFC 7638 thumbprint, whose public half verifies what it signs', async () => {
  const keys = ring();
  await keys.start();
  const signer = keys.signer(now);
  const [jwk] = keys.jwks().keys;
  expect(keys.jwks().keys).toHaveLength(1);
  expect(jwk).toMatchObject({ kid: signer.kid, alg: 'ES256', use: 'sig', crv: 'P-256' });
  expect(jwk).not.toHaveProperty('d');
  expect(await calculateJwkThumbprint(jwk!)).toBe(signer.kid);
  const signature = sign('sha256', Buffer.from('x'), signer.key);
  expect(verify('sha256', Buffer.from('x'), createPublicKey({ key: { ...jwk! }, format: 'jwk' }), signature)).toBe(
    true,
  );
  expect(keys.status(now).ready).toBe(true);
});

test('two replicas that start at once end with the same one active key', async () => {
  const replicas = Array.from({ length: 6 }, () => ring());
  await Promise.all(replicas.map((replica) => replica.start()));
  expect(new Set(replicas.map((replica) => replica.signer(now).kid)).size).toBe(1);
  expect((await rows()).map(({ state }) => state)).toEqual(['active']);
});

test('a restart takes up the keys that are there', async () => {
  const before = ring();
  await before.start();
  const after = ring();
  await after.start();
  expect(after.signer(now).kid).toBe(before.signer(now).kid);
});

test('a rotation pre-publishes, switches every replica by the clock, keeps the old key for the overlap, then deletes it', async () => {
  const one = ring();
  const two = ring();
  await one.start();
  await two.start();
  const old = one.signer(now).kid;
  const kids = (keys: KeyRing) => keys.jwks().keys.map(({ kid }) => kid);

  now += settings.rotateEvery - settings.publishAhead;
  await Promise.all([one.tick(), two.tick()]);
  expect(kids(one)).toHaveLength(2);
  expect(kids(two)).toEqual(kids(one));
  expect(one.signer(now).kid).toBe(old);

  now += settings.publishAhead;
  const next = two.signer(now).kid;
  expect(next).not.toBe(old);
  await one.tick();
  expect((await rows()).map(({ kid, state, sealed_private }) => [kid, state, sealed_private === null])).toEqual([
    [old, 'retired', true],
    [next, 'active', false],
  ]);
  // `two` has not ticked since: it signs with the same key all the same.
  expect(one.signer(now).kid).toBe(next);
  expect(one.signer(now).maxExpiry - now).toBeGreaterThanOrEqual(settings.maxTokenLife);

  now += settings.maxTokenLife + settings.cacheAge;
  await one.tick();
  expect(kids(one)).toContain(old);
  now += settings.skew + 1;
  await one.tick();
  expect(kids(one)).toEqual([next]);
  expect((await rows()).map(({ kid }) => kid)).toEqual([next]);
});

test('after a long stop the broker starts with a fresh key and publishes no dead one', async () => {
  const before = ring();
  await before.start();
  const old = before.signer(now).kid;
  now += 30 * 24 * 60 * minute;
  expect(() => before.signer(now)).toThrow(/no signing key/);
  expect(before.status(now).ready).toBe(false);
  const after = ring();
  await after.start();
  expect(after.jwks().keys.map(({ kid }) => kid)).toEqual([after.signer(now).kid]);
  expect(after.signer(now).kid).not.toBe(old);
});

test('with the wrong sealing key the broker does not start, and says which key is missing without showing any', async () => {
  await ring().start();
  const wrong = randomBytes(32);
  const other = ring(createSealer({ current: wrong, random: randomBytes }));
  const error = await other.start().then(
    () => undefined,
    (reason: unknown) => reason as Error,
  );
  expect(error?.message).toContain('not configured');
  expect(error?.message).toContain(createSealer({ current: sealingKey, random: randomBytes }).keyId);
  expect(error?.message).not.toContain(sealingKey.toString('hex'));
  expect(error?.message).not.toContain(wrong.toString('hex'));
  expect(() => other.signer(now)).toThrow(expect.objectContaining({ reason: 'PROVIDER_UNAVAILABLE' }));
  // The public half stays published: tokens of the other replicas must still verify.
  expect(other.jwks().keys).toHaveLength(1);
});

test('before it is started a key ring signs nothing', () => {
  expect(() => ring().signer(now)).toThrow(expect.objectContaining({ reason: 'PROVIDER_UNAVAILABLE' }));
});

test('a replica whose clock is far from the database leaves the keys alone', async () => {
  await ring().start();
  const [before] = await rows();
  now += 30 * 24 * 60 * minute;
  await expect(ring(undefined, { maxClockOffset: minute }).tick()).rejects.toThrow(/clock/);
  expect(await rows()).toEqual([before]);
});

test('no private half stands in the table in the clear', async () => {
  const keys = ring();
  await keys.start();
  const pkcs8 = keys.signer(now).key.export({ format: 'der', type: 'pkcs8' });
  const [row] = await rows();
  expect(row!.sealed_private!.includes(pkcs8.subarray(-32))).toBe(false);
  expect(row!.sealed_private!.includes(pkcs8.subarray(36, 68))).toBe(false);
});
