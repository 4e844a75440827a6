import type { Caller } from '../../domain/caller.ts';
import { BrokerError } from '../../domain/errors.ts';
import type { Interceptor } from './interceptor.ts';
import { isPromise } from './interceptor.ts';

/** Says who presents this token, or throws BrokerError. A caller known from before may be given back at once. */
export type Authenticate = (token: string) => Caller | Promise<Caller>;

const maxHeader = 16_384;
/** RFC 6750 §2.1: the scheme is matched without regard to case (RFC 9110 §11.1). */
const bearer = /^bearer +([A-Za-z0-9\-._~+/]+=*) *$/i;
const advice = 'Send the header `authorization: Bearer <token>` with your workload token.';

export function bearerToken(header: string | undefined): string {
  if (header === undefined || header === '')
    throw new BrokerError('ATTESTATION_MISSING', `The call is not attested. ${advice}`);
  if (header.length > maxHeader) {
    throw new BrokerError('ATTESTATION_INVALID', `The authorization header is longer than ${maxHeader} characters.`);
  }
  const token = bearer.exec(header)?.[1];
  if (token === undefined) {
    throw new BrokerError('ATTESTATION_INVALID', `The authorization header is malformed. ${advice}`);
  }
  return token;
}

export function identity(authenticate: Authenticate): Interceptor {
  return (_method, next) => (exchange) => {
    const token = bearerToken(exchange.incoming.authorization);
    // Handlers see the exchange; the token is not theirs to see.
    exchange.incoming.authorization = undefined;
    const caller = authenticate(token);
    if (!isPromise(caller)) {
      exchange.caller = caller;
      return next(exchange);
    }
    return caller.then((known) => {
      exchange.caller = known;
      return next(exchange);
    });
  };
}
