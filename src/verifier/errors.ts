export type RefusalCode =
  | 'malformed'
  | 'type'
  | 'algorithm'
  | 'signature'
  | 'issuer'
  | 'audience'
  | 'expired'
  | 'not_yet_valid'
  | 'claims'
  | 'revoked'
  | 'feed_stale'
  | 'keys_unavailable'
  /** It is bound to a key, and no proof of that key came with it. */
  | 'proof_missing'
  | 'proof_invalid'
  /** That proof was used before. */
  | 'proof_replayed';

/** Why a token was refused. The message never holds the token; `code` is stable. */
export class TokenRefused extends Error {
  override readonly name = 'TokenRefused';
  readonly code: RefusalCode;

  constructor(code: RefusalCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
  }
}
