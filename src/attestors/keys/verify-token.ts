import type { Instant } from '../../domain/time.ts';
import type { ParsedToken } from '../token/parse-token.ts';
import { invalid } from '../token/refusal.ts';
import type { KeySource } from './key-source.ts';
import { candidates, verifiesWithAny } from './verification-key.ts';

/** Throws unless a key of the source signed the token. A key that is not there is looked for once. */
export async function verifySignature(
  token: string,
  { alg, kid }: ParsedToken,
  source: KeySource,
  now: Instant,
): Promise<void> {
  for (let round = 1; ; round++) {
    // Before the keys are read: a change while they are being tried must not go unnoticed.
    const before = source.generation();
    const fitting = candidates(await source.keys(now), alg, kid);
    if (fitting.length > 0 && (await verifiesWithAny(token, alg, fitting))) return;
    // With a known `kid` the signature is simply wrong, and no newer set of keys would change that.
    const newerCouldHelp = fitting.length === 0 || kid === undefined;
    if (newerCouldHelp && round === 1) await source.refresh();
    if (source.generation() === before) {
      throw invalid(
        fitting.length === 0
          ? 'The attestation is signed with a key that its issuer does not publish. Get a new token.'
          : "The attestation's signature is wrong. Send the token unchanged, or get a new one.",
      );
    }
  }
}
