import type { Millis } from './domain/time.ts';

// Bounds that several parts share and nobody configures.

/** How long a verifier may keep a JWKS. */
export const jwksCacheAge: Millis = 300_000;
/** How long a verifier may keep a status list. */
export const statusListTtl: Millis = 15_000;
/** Longest time that one revocation at a target may take. */
export const revokeTimeout: Millis = 10_000;
