import type { Clock, Millis } from '../../domain/time.ts';
import { httpsGet } from '../keys/https-get.ts';
import type { KeySource } from '../keys/key-source.ts';
import { createRemoteKeys } from '../keys/remote-keys.ts';
import { maxBundleBytes, parseBundle } from './parse-bundle.ts';

export interface HttpsBundleOptions {
  url: string;
  /** PEM with the only roots to trust for the endpoint; the system's roots when not given. */
  caFile?: string | undefined;
  staleAfter: Millis;
  minRefresh: Millis;
  timeout: Millis;
  clock: Clock;
  random?: () => number;
}

/** A SPIFFE bundle endpoint, profile `https_web` (SPIFFE Federation §5.2.1). */
export function httpsBundle({ url, caFile, ...timing }: HttpsBundleOptions): KeySource {
  const endpoint = new URL(url);
  // §5.2.1.1. There is no exception for loopback: who answers here decides who everybody is.
  if (endpoint.protocol !== 'https:') throw new Error(`bundle endpoint ${endpoint.host}: the URL must be https`);
  if (endpoint.username !== '' || endpoint.password !== '') {
    throw new Error(`bundle endpoint ${endpoint.host}: the URL must not name a user or password`);
  }
  return createRemoteKeys({
    ...timing,
    what: `the bundle endpoint ${endpoint.origin}${endpoint.pathname}`,
    load: async (signal) => parseBundle(await httpsGet(endpoint, { caFile, maxBytes: maxBundleBytes, signal })),
  });
}
