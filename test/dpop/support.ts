import { generateKeyPairSync, randomUUID, type KeyObject } from 'node:crypto';
import { SignJWT } from 'jose';
import { hashOf } from '../../src/dpop/proof.ts';

export interface Holder {
  privateKey: KeyObject;
  publicKey: KeyObject;
}

export function newHolder(): Holder {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

export const issueUrl = (issuer: string, method = 'IssueCredential') =>
  `${issuer}/leasehold.v1.CredentialService/${method}`;

/** A proof as a client would make it, with whatever a test wants to be wrong about it. */
export async function proofOf(
  holder: Holder,
  url: string,
  change: { header?: Record<string, unknown>; claims?: Record<string, unknown>; method?: string; token?: string } = {},
): Promise<string> {
  const { header = {}, claims = {}, method = 'POST', token } = change;
  return await new SignJWT({
    jti: randomUUID(),
    htm: method,
    htu: url,
    iat: Math.floor(Date.now() / 1_000),
    ...(token === undefined ? {} : { ath: hashOf(token) }),
    ...claims,
  })
    .setProtectedHeader({
      typ: 'dpop+jwt',
      alg: 'ES256',
      jwk: holder.publicKey.export({ format: 'jwk' }),
      ...header,
    })
    .sign(holder.privateKey);
}
