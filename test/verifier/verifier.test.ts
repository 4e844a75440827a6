import { createHmac, generateKeyPairSync, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportSPKI, importJWK } from 'jose';
import { describe, expect, test } from 'vitest';
import { createJwtProvider } from '../../src/providers/jwt/provider.ts';
import { statusReferences } from '../../src/providers/jwt/status-list.ts';
import type { ToolTier } from '../../src/domain/policy.ts';
import { createVerifier } from '../../src/verifier/index.ts';
import type { RevocationFeed, VerifierOptions } from '../../src/verifier/index.ts';
import { failure, makeGrant, secretOf } from '../contract/provider-suite.ts';
import { memoryKeyRing } from '../contract/providers/memory-key-ring.ts';

const issuer = 'https://broker.example.org';
const audience = 'https://orders.example.org';
const keyRing = memoryKeyRing();
const tier: ToolTier = {
  provider: 'jwt',
  revocation: 'immediate',
  ttl: { min: 1_000, default: 300_000, max: 900_000 },
  actions: ['orders.list'],
  options: {},
};
const provider = createJwtProvider({
  clock: { now: Date.now },
  issuers: new Map([['default', { issuer, keyRing, statusListUri: statusReferences(`${issuer}/status`) }]]),
});
let now = Date.now();
const clock = { now: () => now };
const grant = makeGrant(provider, tier);
const token = secretOf(provider.sign(grant));
const { kid, key } = keyRing.signer(now);

const verifier = (change: Partial<VerifierOptions> = {}) =>
  createVerifier({ issuer, audience, jwks: keyRing.jwks(), feed: 'none', clock, ...change });
const refused = async (candidate: string, change: Partial<VerifierOptions> = {}) => {
  const error = await failure(() => verifier(change).verify(candidate));
  expect(error.name).toBe('TokenRefused');
  // The payload of a refused token must not be spread by a log.
  if (candidate.length > 40) expect(String(error.stack)).not.toContain(candidate.slice(-40));
  return (error as unknown as { code: string }).code;
};
const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
const claims = JSON.parse(Buffer.from(token.split('.')[1]!, 'base64url').toString()) as Record<string, unknown>;
const header = { alg: 'ES256', typ: 'at+jwt', kid };

function forge(head: object, body: object, by: KeyObject = key): string {
  const input = `${encode(head)}.${encode(body)}`;
  return `${input}.${sign('sha256', Buffer.from(input), { key: by, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
}

test('a token of the broker is accepted, and says who may do what for which task', async () => {
  expect(await verifier().verify(token)).toMatchObject({
    leaseId: grant.lease.leaseId,
    taskId: grant.task.taskId,
    rootTaskId: grant.task.rootTaskId,
    workload: grant.lease.workload,
    agent: 'reporter',
    tool: 'orders',
    tier: 'read',
    actions: ['orders.list'],
    epoch: 1,
    expiresAt: Math.floor(grant.lease.expiresAt / 1000) * 1000,
  });
  expect(await verifier().verify(forge(header, claims))).toBeDefined();
});

describe('a token is refused', () => {
  test.each<[string, () => string, string]>([
    ['with algorithm none', () => `${encode({ ...header, alg: 'none' })}.${encode(claims)}.AA`, 'algorithm'],
    ['of type JWT', () => forge({ ...header, typ: 'JWT' }, claims), 'type'],
    ['without a type', () => forge({ alg: 'ES256', kid }, claims), 'type'],
    ['of a status list’s type', () => forge({ ...header, typ: 'statuslist+jwt' }, claims), 'type'],
    ['with a jku header', () => forge({ ...header, jku: 'https://evil.example.org' }, claims), 'malformed'],
    ['with an embedded key', () => forge({ ...header, jwk: keyRing.jwks().keys[0] }, claims), 'malformed'],
    ['with a crit header', () => forge({ ...header, crit: ['exp'] }, claims), 'malformed'],
    ['without a kid', () => forge({ alg: 'ES256', typ: 'at+jwt' }, claims), 'malformed'],
    ['with an unknown kid', () => forge({ ...header, kid: '../../etc/passwd' }, claims), 'signature'],
    ['of another issuer', () => forge(header, { ...claims, iss: 'https://evil.example.org' }), 'issuer'],
    ['for another resource', () => forge(header, { ...claims, aud: 'https://other.example.org' }), 'audience'],
    [
      'for several resources',
      () => forge(header, { ...claims, aud: [audience, 'https://other.example.org'] }),
      'audience',
    ],
    ['without an end', () => forge(header, without('exp')), 'claims'],
    ['without a lease', () => forge(header, without('jti')), 'claims'],
    ['without a task', () => forge(header, without('task_id')), 'claims'],
    ['without authorization details', () => forge(header, without('authorization_details')), 'claims'],
    ['with a payload that is no object', () => forge(header, [1]), 'malformed'],
    ['that is not a JWS', () => 'not-a-token', 'malformed'],
    ['of a megabyte', () => 'a'.repeat(1_000_000), 'malformed'],
    ['with a NUL', () => `${token}\0`, 'malformed'],
  ])('%s', async (_, make, code) => {
    expect(await refused(make())).toBe(code);
  });

  test('signed with HMAC by the public key', async () => {
    const pem = await exportSPKI(
      (await importJWK({ ...keyRing.jwks().keys[0]! }, 'ES256', { extractable: true })) as Parameters<
        typeof exportSPKI
      >[0],
    );
    const input = `${encode({ ...header, alg: 'HS256' })}.${encode(claims)}`;
    expect(await refused(`${input}.${createHmac('sha256', pem).update(input).digest('base64url')}`)).toBe('algorithm');
  });

  test('signed by someone else under the broker’s kid', async () => {
    const other = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
    expect(await refused(forge(header, claims, other))).toBe('signature');
  });

  test('with any one character changed', async () => {
    for (let index = 0; index < token.length; index += 7) {
      if (token[index] === '.') continue;
      const changed = `${token.slice(0, index)}${token[index] === 'A' ? 'B' : 'A'}${token.slice(index + 1)}`;
      await failure(() => verifier().verify(changed));
    }
  });

  test('before it begins and after it ends, with a minute for clocks that differ', async () => {
    const start = now;
    const end = grant.lease.expiresAt;
    now = end + 58_000;
    await verifier().verify(token);
    now = end + 61_000;
    expect(await refused(token)).toBe('expired');
    now = grant.lease.issuedAt - 58_000;
    await verifier().verify(token);
    now = grant.lease.issuedAt - 62_000;
    expect(await refused(token)).toBe('not_yet_valid');
    now = start;
  });
});

function without(name: string): object {
  return Object.fromEntries(Object.entries(claims).filter(([claim]) => claim !== name));
}

describe('with a revocation feed', () => {
  const feed = (fresh: number | undefined, revoked: string[] = []): RevocationFeed => ({
    freshAsOf: () => fresh,
    revoked: ({ taskId, leaseId }) => revoked.includes(taskId) || revoked.includes(leaseId),
  });

  test('a token whose task or lease is on it is refused, any other accepted', async () => {
    expect(await refused(token, { feed: feed(now, [grant.task.taskId]) })).toBe('revoked');
    expect(await refused(token, { feed: feed(now, [grant.lease.leaseId]) })).toBe('revoked');
    await verifier({ feed: feed(now, ['tsk_other']) }).verify(token);
  });

  test('that has said nothing yet, or nothing for longer than the bound, every token is refused (fault 19)', async () => {
    expect(await refused(token, { feed: feed(undefined) })).toBe('feed_stale');
    expect(await refused(token, { feed: feed(now - 10_001), stalenessBound: 10_000 })).toBe('feed_stale');
    await verifier({ feed: feed(now - 10_000), stalenessBound: 10_000 }).verify(token);
  });

  test('a clock that was set back does not make its old word new', async () => {
    expect(await refused(token, { feed: feed(now + 20_000), stalenessBound: 10_000 })).toBe('feed_stale');
  });
});

describe('with the JWKS fetched', () => {
  test('it verifies by the URL alone, and says when keys cannot be had', async () => {
    let up = true;
    const server = createServer((_, response) => {
      response.statusCode = up ? 200 : 503;
      response.setHeader('content-type', 'application/json').end(JSON.stringify(keyRing.jwks()));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const jwks = `http://127.0.0.1:${(server.address() as AddressInfo).port}/jwks`;
    await verifier({ jwks }).verify(token);
    up = false;
    expect(await refused(token, { jwks })).toBe('keys_unavailable');
    server.closeAllConnections();
    server.close();
  });

  test('plaintext to another machine is refused', () => {
    expect(() => verifier({ jwks: 'http://broker.example.org/jwks' })).toThrow(/https/);
  });
});
