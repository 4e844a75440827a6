import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { calculateJwkThumbprint, SignJWT } from 'jose';
import { describe, expect, test } from 'vitest';
import { checkProof, hashOf } from '../../src/dpop/proof.ts';
import { createReplayStore } from '../../src/dpop/replays.ts';
import { newHolder, proofOf } from './support.ts';

const url = 'https://reports.example.test/rows';
const holder = newHolder();
const check = (proof: string, more: object = {}) =>
  checkProof(proof, { method: 'POST', url, now: Date.now(), ...more });

describe('a proof', () => {
  test('says which key its maker holds', async () => {
    const { jkt } = await check(await proofOf(holder, url));
    expect(jkt).toBe(await calculateJwkThumbprint(holder.publicKey.export({ format: 'jwk' }) as never));
  });

  test('may be made with any usual key', async () => {
    const keys = [
      ['ES384', generateKeyPairSync('ec', { namedCurve: 'P-384' })],
      ['EdDSA', generateKeyPairSync('ed25519')],
      ['PS256', generateKeyPairSync('rsa', { modulusLength: 2048 })],
    ] as const;
    for (const [alg, key] of keys) await check(await proofOf(key, url, { header: { alg } }));
  });

  test.each([
    ['query and fragment of its URL', 'https://reports.example.test/rows?page=2#top'],
    ['a default port', 'https://reports.example.test:443/rows'],
    ['letter case where it means nothing', 'HTTPS://Reports.Example.TEST/rows'],
  ])('is for the same URL whatever %s', async (_what, htu) => {
    await check(await proofOf(holder, url, { claims: { htu } }));
  });

  const minute = 60;
  const now = () => Math.floor(Date.now() / 1_000);
  const secret = holder.privateKey.export({ format: 'jwk' });
  const cases: [string, Parameters<typeof proofOf>[2], RegExp][] = [
    ['another type', { header: { typ: 'JWT' } }, /typ has to be dpop\+jwt/],
    ['no key', { header: { jwk: undefined } }, /hold the public key as jwk/],
    ['a private key', { header: { jwk: secret } }, /jwk holds a private key/],
    ['a symmetric key', { header: { jwk: { kty: 'oct', k: 'AAAA' } } }, /hold the public key as jwk/],
    [
      'another key',
      { header: { jwk: newHolder().publicKey.export({ format: 'jwk' }) } },
      /not of the key in its header/,
    ],
    ['a header that steers verification', { header: { kid: 'x' } }, /may hold typ, alg and jwk only/],
    ['another method', { claims: { htm: 'GET' } }, /htm has to be POST/],
    ['another URL', { claims: { htu: 'https://other.example.test/rows' } }, /htu has to be https:\/\/reports/],
    ['another scheme', { claims: { htu: 'http://reports.example.test/rows' } }, /htu has to be/],
    ['no URL', { claims: { htu: 'rows' } }, /htu has to be/],
    ['an old time', { claims: { iat: now() - 2 * minute } }, /iat has to be within 60 s/],
    ['a time to come', { claims: { iat: now() + 2 * minute } }, /iat has to be within 60 s/],
    ['no time', { claims: { iat: undefined } }, /iat/],
    ['no jti', { claims: { jti: undefined } }, /jti has to be a text/],
    ['a long jti', { claims: { jti: 'x'.repeat(300) } }, /jti has to be a text/],
    ['an expiry that has passed', { claims: { exp: now() - 2 * minute } }, /has expired/],
  ];
  test.each(cases)('with %s is refused, and says what it has to be', async (_what, change, why) => {
    await expect(check(await proofOf(holder, url, change))).rejects.toThrow(why);
  });

  test('with a symmetric algorithm or none at all is refused', async () => {
    const jwk = holder.publicKey.export({ format: 'jwk' });
    const claims = { jti: randomUUID(), htm: 'POST', htu: url };
    const hs = await new SignJWT(claims)
      .setProtectedHeader({ typ: 'dpop+jwt', alg: 'HS256', jwk: jwk as never })
      .setIssuedAt()
      .sign(Buffer.from(JSON.stringify(jwk)));
    await expect(check(hs)).rejects.toThrow(/alg has to be one of/);
    const header = Buffer.from(JSON.stringify({ typ: 'dpop+jwt', alg: 'none', jwk })).toString('base64url');
    const body = Buffer.from(JSON.stringify({ ...claims, iat: now() })).toString('base64url');
    await expect(check(`${header}.${body}.AA`)).rejects.toThrow(/alg has to be one of/);
    await expect(check('nonsense')).rejects.toThrow(/one compact JWS/);
    await expect(check(`${'a'.repeat(9_000)}.a.a`)).rejects.toThrow(/one compact JWS/);
  });

  test('belongs to one access token, and to a nonce where one was asked for', async () => {
    const bound = await proofOf(holder, url, { token: 'abc', claims: { nonce: 'n1' } });
    await check(bound, { accessToken: 'abc', nonce: 'n1' });
    await expect(check(bound, { accessToken: 'abd' })).rejects.toThrow(/ath has to be the hash/);
    await expect(check(await proofOf(holder, url), { accessToken: 'abc' })).rejects.toThrow(/ath has to be the hash/);
    await expect(check(bound, { nonce: 'n2' })).rejects.toThrow(/nonce has to be the one/);
    // RFC 9449 §7.1's own example.
    expect(hashOf('Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU')).toBe('fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo');
  });
});

describe('used proofs', () => {
  const proof = (jti: string, until: number) => ({ jkt: 'k', jti, until });

  test('are good once, for the same request again, and not after their window', () => {
    const store = createReplayStore();
    expect(store.use(proof('a', 100), 'one', 0)).toBe('fresh');
    expect(store.use(proof('a', 100), 'two', 1)).toBe('used');
    expect(store.use(proof('a', 100), 'one', 1)).toBe('fresh');
    expect(store.use({ ...proof('a', 100), jkt: 'other' }, 'two', 1)).toBe('fresh');
  });

  test('are remembered in a bounded place, which takes no more rather than forget one', () => {
    const store = createReplayStore(2);
    expect(store.use(proof('a', 100), 'x', 0)).toBe('fresh');
    expect(store.use(proof('b', 200), 'x', 0)).toBe('fresh');
    expect(store.use(proof('c', 300), 'x', 50)).toBe('full');
    expect(store.use(proof('b', 200), 'y', 50)).toBe('used');
    expect(store.use(proof('c', 300), 'x', 100)).toBe('fresh');
  });
});
