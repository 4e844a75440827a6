import { sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';

export interface JwsSigner {
  kid: string;
  key: KeyObject;
}

/**
 * Compact ES256 JWS (RFC 7515 §7.1, RFC 7518 §3.4) with node:crypto, synchronous: on the issuing path the asynchronous
 * signers cost several times as much. `headers` keeps the encoded header per key and is bounded by the keys of the ring.
 */
export function createJwsWriter(typ: 'at+jwt' | 'statuslist+jwt'): (signer: JwsSigner, claims: object) => string {
  const headers = new Map<string, string>();
  return (signer, claims) => {
    let header = headers.get(signer.kid);
    if (header === undefined) {
      if (headers.size >= 16) headers.clear();
      header = Buffer.from(JSON.stringify({ alg: 'ES256', typ, kid: signer.kid })).toString('base64url');
      headers.set(signer.kid, header);
    }
    const input = `${header}.${Buffer.from(JSON.stringify(claims)).toString('base64url')}`;
    const signature = rawSignature(sign('sha256', Buffer.from(input, 'latin1'), signer.key));
    return `${input}.${signature.toString('base64url')}`;
  };
}

const integerBytes = 32;

/**
 * From DER, SEQUENCE { INTEGER r, INTEGER s } (RFC 3279 §2.2.3), to r and s of 32 bytes each (RFC 7518 §3.4). Asking
 * node:crypto for that encoding, with an options object around the key, takes twice as long as the signature itself.
 */
export function rawSignature(der: Buffer): Buffer {
  const raw = Buffer.alloc(2 * integerBytes);
  // At most 2 × 35 bytes follow the outer tag, so that every length is one byte.
  const afterR = copyInteger(der, 2, raw, 0);
  copyInteger(der, afterR, raw, integerBytes);
  return raw;
}

/** Copies the INTEGER at `at` without its sign byte, right-aligned; answers where the next element begins. */
function copyInteger(der: Buffer, at: number, raw: Buffer, to: number): number {
  const end = at + 2 + der[at + 1]!;
  const start = Math.max(at + 2, end - integerBytes);
  der.copy(raw, to + integerBytes - (end - start), start, end);
  return end;
}
