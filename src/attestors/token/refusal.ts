import { BrokerError } from '../../domain/errors.ts';

/** A token that will never be accepted as it is. The sentence is for the caller and holds no part of the token. */
export function invalid(why: string): BrokerError {
  return new BrokerError('ATTESTATION_INVALID', why);
}
