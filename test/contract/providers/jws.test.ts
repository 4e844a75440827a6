import { createPublicKey, generateKeyPairSync, sign, verify } from 'node:crypto';
import { expect, test } from 'vitest';
import { rawSignature } from '../../../src/providers/jwt/jws.ts';

const integer = (hex: string) => Buffer.concat([Buffer.from([2, hex.length / 2]), Buffer.from(hex, 'hex')]);
const sequence = (...parts: Buffer[]) => Buffer.concat([Buffer.from([0x30, Buffer.concat(parts).length]), ...parts]);

test('a signature has r and s in 32 bytes each, whatever their length in DER', () => {
  const full = 'ff'.repeat(32);
  const cases = [
    { r: integer(`00${full}`), s: integer('7f'.repeat(32)), raw: full + '7f'.repeat(32) },
    { r: integer('01'), s: integer(`00${full}`), raw: '00'.repeat(31) + '01' + full },
    { r: integer('0080'), s: integer('12'.repeat(31)), raw: '00'.repeat(31) + '80' + '00' + '12'.repeat(31) },
  ];
  for (const { r, s, raw } of cases) expect(rawSignature(sequence(r, s)).toString('hex')).toBe(raw);
});

test('every signature of node:crypto is verified in the encoding of JWS', () => {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const key = createPublicKey(privateKey);
  // Enough that some have a short r or s (one in 128).
  for (let n = 0; n < 2_000; n++) {
    const input = Buffer.from(`input ${n}`);
    const raw = rawSignature(sign('sha256', input, privateKey));
    expect(raw).toHaveLength(64);
    expect(verify('sha256', input, { key, dsaEncoding: 'ieee-p1363' }, raw)).toBe(true);
  }
});
