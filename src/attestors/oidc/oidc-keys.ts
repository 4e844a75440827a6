import type { Clock, Millis } from '../../domain/time.ts';
import { httpsGet, isLoopback } from '../keys/https-get.ts';
import type { KeySource } from '../keys/key-source.ts';
import { createRemoteKeys } from '../keys/remote-keys.ts';
import { importKeys } from '../keys/verification-key.ts';
import { parseStrictObject } from '../token/strict-json.ts';

export interface OidcKeysOptions {
  issuer: string;
  /** Skips discovery. */
  jwksUri?: string | undefined;
  caFile?: string | undefined;
  staleAfter: Millis;
  minRefresh: Millis;
  timeout: Millis;
  clock: Clock;
  random?: (() => number) | undefined;
}

const maxBytes = 262_144;

/** An issuer's JWKS, by OpenID Connect Discovery 1.0 §4 unless its address is given. */
export function createOidcKeys({ issuer, jwksUri, caFile, random, ...timing }: OidcKeysOptions): KeySource {
  checkUrl(issuer, 'issuer');
  // OpenID Connect Core §2: neither query nor fragment.
  if (/[?#]/.test(issuer)) throw new Error(`issuer ${issuer}: must have neither query nor fragment`);
  const discovery = new URL(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`);
  const given = jwksUri === undefined ? undefined : checkUrl(jwksUri, 'jwksUri');

  return createRemoteKeys({
    ...timing,
    ...(random === undefined ? {} : { random }),
    what: `the keys of ${issuer}`,
    async load(signal) {
      const get = { caFile, maxBytes, signal };
      // Discovered each time: two small requests a few times an hour, and an address that moved is followed.
      const url = given ?? jwksUriOf(parseStrictObject(await httpsGet(discovery, get)), issuer);
      const { keys } = parseStrictObject(await httpsGet(url, get));
      return importKeys(keys, ({ use }) => (use === undefined || use === 'sig' ? undefined : '`use` is not sig'));
    },
  });
}

/** Where the issuer's discovery document says that its keys are. */
export function jwksUriOf(document: Record<string, unknown>, issuer: string): URL {
  // §4.3: exactly, or one provider could name another's keys as its own.
  if (document['issuer'] !== issuer) throw new Error(`discovery of ${issuer} names another issuer`);
  if (typeof document['jwks_uri'] !== 'string') throw new Error(`discovery of ${issuer} has no jwks_uri`);
  const url = checkUrl(document['jwks_uri'], 'jwks_uri');
  if (url.protocol === 'http:' && !isLoopback(new URL(issuer))) {
    throw new Error(`discovery of ${issuer}: jwks_uri must be https`);
  }
  return url;
}

export function checkUrl(text: string, name: string): URL {
  if (!URL.canParse(text)) throw new Error(`${name}: not a URL`);
  const url = new URL(text);
  if (url.username !== '' || url.password !== '')
    throw new Error(`${name} ${url.host}: must not name a user or password`);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && isLoopback(url))) {
    throw new Error(`${name} ${url.host}: must be https (http is for loopback only)`);
  }
  return url;
}
