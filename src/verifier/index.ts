export { TokenRefused } from './errors.ts';
export type { RefusalCode } from './errors.ts';
export type { VerifiedToken } from './claims.ts';
export type { RevocationFeed } from './feed.ts';
export { followRevocations } from './follow.ts';
export type { FollowOptions, RevocationFollower } from './follow.ts';
export { createVerifier } from './verifier.ts';
export type { Verifier, VerifierOptions } from './verifier.ts';
