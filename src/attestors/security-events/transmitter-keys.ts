import { readFile } from 'node:fs/promises';
import type { Clock, Millis } from '../../domain/time.ts';
import { httpsGet } from '../keys/https-get.ts';
import type { KeySource } from '../keys/key-source.ts';
import { createRemoteKeys } from '../keys/remote-keys.ts';
import { importKeys, type KeySet } from '../keys/verification-key.ts';
import { checkUrl, jwksUriOf } from '../oidc/oidc-keys.ts';
import { parseStrictObject } from '../token/strict-json.ts';

export interface TransmitterKeysOptions {
  issuer: string;
  jwksUri?: string | undefined;
  jwksFile?: string | undefined;
  caFile?: string | undefined;
  staleAfter: Millis;
  minRefresh: Millis;
  timeout: Millis;
  clock: Clock;
}

const maxBytes = 262_144;

/** Keys of a transmitter: from a file, from an address, or by the discovery of SSF 1.0 §7.2. */
export function createTransmitterKeys(options: TransmitterKeysOptions): KeySource {
  const { issuer, jwksFile, caFile, jwksUri, ...timing } = options;
  const given = jwksUri === undefined ? undefined : checkUrl(jwksUri, 'jwksUri');
  const discovery = jwksFile === undefined && given === undefined ? configurationUrl(issuer) : undefined;
  return createRemoteKeys({
    ...timing,
    what: `the keys of the transmitter ${issuer}`,
    async load(signal) {
      if (jwksFile !== undefined) return keysIn(await readFile(jwksFile, { signal }));
      const get = { caFile, maxBytes, signal };
      const url = given ?? jwksUriOf(parseStrictObject(await httpsGet(discovery!, get)), issuer);
      return keysIn(await httpsGet(url, get));
    },
  });
}

function keysIn(bytes: Buffer): KeySet {
  const { keys } = parseStrictObject(bytes);
  return importKeys(keys, ({ use }) => (use === undefined || use === 'sig' ? undefined : '`use` is not sig'));
}

/** §7.2.1: the well-known part comes between the issuer's host and its path. */
export function configurationUrl(issuer: string): URL {
  const url = checkUrl(issuer, 'issuer');
  const path = url.pathname.replace(/\/$/, '');
  return new URL(`${url.origin}/.well-known/ssf-configuration${path}`);
}
