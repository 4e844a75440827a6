import { generateKeyPairSync } from 'node:crypto';
import { inflateSync } from 'node:zlib';
import { createLocalJWKSet, decodeJwt, decodeProtectedHeader, jwtVerify } from 'jose';
import { describe, expect, test } from 'vitest';
import type { SelfContainedProvider } from '../../../src/domain/provider.ts';
import { createJwtProvider, validateJwtTierOptions } from '../../../src/providers/jwt/provider.ts';
import { buildStatusListToken, encodeStatusList, statusReferences } from '../../../src/providers/jwt/status-list.ts';
import type { ToolTier } from '../../../src/domain/policy.ts';
import { failure, makeGrant, providerSuite, secretOf } from '../provider-suite.ts';
import { memoryKeyRing } from './memory-key-ring.ts';

const issuer = 'https://broker.example.org';
const clock = { now: Date.now };
const tier: ToolTier = {
  provider: 'jwt',
  revocation: 'immediate',
  ttl: { min: 1_000, default: 300_000, max: 900_000 },
  actions: ['orders.list', 'orders.get'],
  options: {},
};
const keyRing = memoryKeyRing();
const provider = createJwtProvider({
  clock,
  issuers: new Map([['default', { issuer, keyRing, statusListUri: statusReferences(`${issuer}/status`) }]]),
});
const verify = async (token: string) =>
  await jwtVerify(token, createLocalJWKSet(keyRing.jwks()), {
    issuer,
    audience: 'https://orders.example.org',
    typ: 'at+jwt',
    algorithms: ['ES256'],
  });

providerSuite('jwt', async () => ({
  provider,
  tier,
  accepted: async (material) =>
    await verify(secretOf(material)).then(
      () => true,
      () => false,
    ),
  expiry: async (material) => (await verify(secretOf(material))).payload.exp! * 1000,
}));

describe('an issued token', () => {
  test('says exactly what design §8 asks for, from lease and task alone', async () => {
    const grant = makeGrant(provider, tier);
    const token = secretOf(provider.sign(grant));
    expect(decodeProtectedHeader(token)).toEqual({ alg: 'ES256', typ: 'at+jwt', kid: keyRing.signer(clock.now()).kid });
    const seconds = Math.floor(grant.lease.issuedAt / 1000);
    expect((await verify(token)).payload).toEqual({
      iss: issuer,
      sub: grant.lease.workload,
      aud: grant.tool.resource,
      exp: Math.floor(grant.lease.expiresAt / 1000),
      iat: seconds,
      nbf: seconds,
      jti: grant.lease.leaseId,
      client_id: 'reporter',
      scope: 'orders:read',
      authorization_details: [{ type: 'leasehold_tool', tool: 'orders', tier: 'read', actions: tier.actions }],
      task_id: grant.task.taskId,
      root_task_id: grant.task.rootTaskId,
      epoch: 1,
      status: { status_list: { idx: 8, uri: `${issuer}/status/1` } },
    });
  });

  test('is refused for another audience', async () => {
    const grant = makeGrant(provider, tier);
    grant.tool.resource = 'https://other.example.org';
    await expect(verify(secretOf(provider.sign(grant)))).rejects.toThrow(/aud/);
  });

  test('longer than 2 KB is not made, and the error says what to shorten', async () => {
    const actions = Array.from({ length: 200 }, (_, index) => `orders.action-${index}`);
    const error = await failure(() => provider.sign(makeGrant(provider, { ...tier, actions })));
    expect(error.reason).toBe('TOO_LARGE');
    expect(error.message).toMatch(/2048/);
    expect(error.message).toMatch(/list of actions/);
  });

  test('never outlives its signing key, and without a key there is none', async () => {
    const grant = makeGrant(provider, tier);
    const late = { ...grant, lease: { ...grant.lease, expiresAt: provider.maxExpiry('default', clock.now()) + 1 } };
    expect((await failure(() => provider.sign(late))).reason).toBe('PROVIDER_UNAVAILABLE');
    const none: SelfContainedProvider = createJwtProvider({
      clock,
      issuers: new Map([
        ['default', { issuer, keyRing: memoryKeyRing({ empty: true }), statusListUri: statusReferences(issuer) }],
      ]),
    });
    expect((await failure(() => none.sign(grant))).reason).toBe('PROVIDER_UNAVAILABLE');
    expect((await failure(() => none.maxExpiry('default', clock.now()))).reason).toBe('PROVIDER_UNAVAILABLE');
  });

  test('signed with a key that a JWKS does not hold does not verify', async () => {
    const other = createJwtProvider({
      clock,
      issuers: new Map([['default', { issuer, keyRing: memoryKeyRing(), statusListUri: statusReferences(issuer) }]]),
    });
    await expect(verify(secretOf(other.sign(makeGrant(other, tier))))).rejects.toThrow();
  });
});

test('a tier with provider jwt takes no options', () => {
  expect(validateJwtTierOptions({}, 'options')).toEqual([]);
  expect(validateJwtTierOptions({ target: 'x' }, 'options')).toMatchObject([{ path: 'options.target' }]);
});

describe('a status list token', () => {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const signer = { kid: 'k', key: privateKey, maxExpiry: Date.now() + 3_600_000 };
  const uri = `${issuer}/status/1`;
  const build = (revoked: number[], now = Date.now()) =>
    buildStatusListToken({ uri, issuer, revoked, signer, now, ttl: 5_000, life: 60_000 });

  test('encodes the example of draft-ietf-oauth-status-list §4.2', () => {
    const bits = [0, 3, 4, 5, 7, 8, 9, 13, 15];
    expect(encodeStatusList(bits, 16)).toBe('eNrbuRgAAhcBXQ');
  });

  test('has one bit per status, set exactly where something is revoked', () => {
    const claims = decodeJwt<{ status_list: { bits: number; lst: string }; ttl: number }>(build([0, 8, 131_071]));
    expect(claims).toMatchObject({ sub: uri, iss: issuer, ttl: 5, status_list: { bits: 1 } });
    const bytes = inflateSync(Buffer.from(claims.status_list.lst, 'base64url'));
    expect(bytes).toHaveLength(2 ** 14);
    const set = [...bytes.keys()].filter((index) => bytes[index] !== 0).map((index) => [index, bytes[index]]);
    expect(set).toEqual([
      [0, 1],
      [1, 1],
      [16_383, 128],
    ]);
  });

  test('names its type, is signed with ES256, and ends no later than its key', async () => {
    expect(decodeProtectedHeader(build([]))).toEqual({ alg: 'ES256', typ: 'statuslist+jwt', kid: 'k' });
    const nearEnd = signer.maxExpiry - 1_500;
    expect(decodeJwt(build([], nearEnd)).exp).toBe(Math.floor(signer.maxExpiry / 1000));
    expect((await failure(() => build([], signer.maxExpiry))).message).toMatch(/signing key/);
  });

  test('refuses an index outside the list', () => {
    expect(() => build([131_072])).toThrow(RangeError);
    expect(() => build([-1])).toThrow(RangeError);
    expect(() => statusReferences(issuer)(-1)).toThrow(RangeError);
  });
});
