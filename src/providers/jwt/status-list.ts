import { deflateSync } from 'node:zlib';
import type { Instant, Millis } from '../../domain/time.ts';
import type { Signer } from '../../keys/signing-keys.ts';
import { createJwsWriter } from './jws.ts';

/** `status_list` member of a token's `status` claim (draft-ietf-oauth-status-list §6.2). */
export interface StatusReference {
  idx: number;
  uri: string;
}

/** Statuses per list: 16 KiB before compression, enough that a list says little about who fetches it. */
export const statusListSize = 2 ** 17;

export function statusListNumber(index: number, size: number = statusListSize): number {
  return Math.floor(index / size);
}

/** Maps a task's index to its place in a list `<base>/<number>`. */
export function statusReferences(base: string, size: number = statusListSize): (index: number) => StatusReference {
  return (index) => {
    if (!Number.isSafeInteger(index) || index < 0) throw new RangeError(`${index} is not an index of a status list`);
    return { idx: index % size, uri: `${base}/${statusListNumber(index, size)}` };
  };
}

export interface StatusListOptions {
  /** URI under which the token is served: equal to `uri` in the tokens that refer to it. */
  uri: string;
  issuer: string;
  /** Positions in this list (0 to size − 1) that are revoked. */
  revoked: Iterable<number>;
  size?: number;
  signer: Signer;
  now: Instant;
  /** How long a consumer may cache it before it asks again. */
  ttl: Millis;
  /** How long it is valid at all; a consumer that gets no newer one must then refuse. */
  life: Millis;
}

const write = createJwsWriter('statuslist+jwt');

/** Status List Token in JWT form (draft-ietf-oauth-status-list §5.1), one bit per status: 0 valid, 1 invalid (§7.1). */
export function buildStatusListToken(options: StatusListOptions): string {
  const { signer, now } = options;
  const expiresAt = Math.min(now + options.life, signer.maxExpiry);
  if (expiresAt <= now) throw new Error('the signing key ends before the status list would');
  return write(signer, {
    iss: options.issuer,
    sub: options.uri,
    iat: Math.floor(now / 1000),
    exp: Math.floor(expiresAt / 1000),
    ttl: Math.max(1, Math.floor(options.ttl / 1000)),
    status_list: { bits: 1, lst: encodeStatusList(options.revoked, options.size ?? statusListSize) },
  });
}

/** §4.1: bits count from the least significant one of each byte, compressed as ZLIB (RFC 1950). */
export function encodeStatusList(revoked: Iterable<number>, size: number): string {
  const bytes = new Uint8Array(Math.ceil(size / 8));
  for (const index of revoked) {
    if (!Number.isSafeInteger(index) || index < 0 || index >= size) {
      throw new RangeError(`status index ${index} is not in a list of ${size}`);
    }
    bytes[index >> 3]! |= 1 << (index & 7);
  }
  return deflateSync(bytes, { level: 9 }).toString('base64url');
}
