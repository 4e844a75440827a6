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
    const signature = sign('sha256', Buffer.from(input, 'latin1'), { key: signer.key, dsaEncoding: 'ieee-p1363' });
    return `${input}.${signature.toString('base64url')}`;
  };
}
