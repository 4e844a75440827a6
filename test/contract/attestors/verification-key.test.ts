import { constants, generateKeyPairSync, sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { SignJWT } from 'jose';
import { describe, expect, test } from 'vitest';
import {
  candidates,
  importKeys,
  svidAlgorithms,
  verifiesWithAny,
} from '../../../src/attestors/keys/verification-key.ts';

const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
const keys: Record<string, { publicKey: KeyObject; privateKey: KeyObject }> = {
  ES256: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
  ES384: generateKeyPairSync('ec', { namedCurve: 'P-384' }),
  ES512: generateKeyPairSync('ec', { namedCurve: 'P-521' }),
  EdDSA: generateKeyPairSync('ed25519'),
};
const pair = (alg: string) => keys[alg] ?? rsa;
const jwk = (key: KeyObject) => key.export({ format: 'jwk' }) as Record<string, unknown>;
const read = (...members: unknown[]) => importKeys(members, () => undefined);

describe('a published key', () => {
  test.each([...svidAlgorithms, 'EdDSA'])('verifies %s by the type that fits, and nothing else does', async (alg) => {
    const set = read({ ...jwk(pair(alg).publicKey), kid: 'a' });
    const token = await new SignJWT({ x: 1 }).setProtectedHeader({ alg, kid: 'a' }).sign(pair(alg).privateKey);
    expect(await verifiesWithAny(token, alg, candidates(set.keys, alg, 'a'))).toBe(true);
    const others = Object.keys(keys).filter((other) => pair(other) !== pair(alg));
    for (const other of others) {
      expect(candidates(read({ ...jwk(pair(other).publicKey), kid: 'a' }).keys, alg, 'a')).toHaveLength(0);
    }
    expect(await verifiesWithAny(`${token.slice(0, -8)}AAAAAAAA`, alg, candidates(set.keys, alg, 'a'))).toBe(false);
  });

  test('that states its alg verifies only that', () => {
    const {
      keys: [key],
    } = read({ ...jwk(rsa.publicKey), alg: 'RS256' });
    expect([...key!.algorithms]).toEqual(['RS256']);
    expect(read({ ...jwk(rsa.publicKey), alg: 'HS256' }).ignored[0]).toMatch(/`alg` does not fit/);
  });

  test('of RSA with 1024 bits is left out', () => {
    const weak = generateKeyPairSync('rsa', { modulusLength: 1024 });
    expect(read(jwk(weak.publicKey))).toMatchObject({ keys: [], ignored: [expect.stringMatching(/1024 bits/)] });
  });

  test('of RSA with an absurd modulus is left out', () => {
    const n = Buffer.alloc(2048, 0xff).toString('base64url');
    expect(read({ kty: 'RSA', n, e: 'AQAB' })).toMatchObject({
      keys: [],
      ignored: [expect.stringMatching(/16384 bits/)],
    });
  });

  test('on a point that is not on its curve is left out', () => {
    const x = Buffer.alloc(32, 1).toString('base64url');
    expect(read({ kty: 'EC', crv: 'P-256', x, y: x }).keys).toHaveLength(0);
  });

  test('of a type for other uses is left out', () => {
    expect(
      read(jwk(generateKeyPairSync('x25519').publicKey), jwk(generateKeyPairSync('ed448').publicKey)).keys,
    ).toEqual([]);
  });

  test('with a kid that is no text is left out', () => {
    expect(read({ ...jwk(rsa.publicKey), kid: 7 }).keys).toHaveLength(0);
  });

  test('is tried with at most three others for a token without kid', () => {
    const many = read(
      ...Array.from({ length: 9 }, () => jwk(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey)),
    );
    expect(candidates(many.keys, 'ES256', undefined)).toHaveLength(4);
  });

  test('is the same in another order, and another one with another kid', () => {
    const [a, b] = [
      { ...jwk(rsa.publicKey), kid: 'a' },
      { ...jwk(keys['ES256']!.publicKey), kid: 'b' },
    ];
    expect(read(a, b).fingerprint).toBe(read(b, a).fingerprint);
    expect(read(a, b).fingerprint).not.toBe(read(a).fingerprint);
    expect(read(a).fingerprint).not.toBe(read({ ...a, kid: 'c' }).fingerprint);
    expect(read(a).fingerprint).not.toBe(read({ ...a, alg: 'RS256' }).fingerprint);
  });

  test('does not verify PKCS #1 signatures as PSS', async () => {
    const set = read({ ...jwk(rsa.publicKey), kid: 'a' });
    const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const input = `${part({ alg: 'PS256', kid: 'a' })}.${part({})}`;
    const signature = sign('sha256', Buffer.from(input), { key: rsa.privateKey, padding: constants.RSA_PKCS1_PADDING });
    const token = `${input}.${signature.toString('base64url')}`;
    expect(await verifiesWithAny(token, 'PS256', candidates(set.keys, 'PS256', 'a'))).toBe(false);
  });
});
