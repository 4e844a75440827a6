import { generateKeyPairSync } from 'node:crypto';
import { BrokerError } from '../../../src/domain/errors.ts';
import { thumbprint } from '../../../src/keys/jwk.ts';
import type { Jwks } from '../../../src/keys/jwk.ts';
import type { KeyRing, Signer } from '../../../src/keys/signing-keys.ts';

/** One key that lives for a day, or none: what the JWT provider and the verifier need of a key ring. */
export function memoryKeyRing(options: { empty?: boolean } = {}): Pick<KeyRing, 'signer' | 'maxExpiry' | 'jwks'> {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const { x, y } = publicKey.export({ format: 'jwk' }) as { x: string; y: string };
  const kid = thumbprint(x, y);
  const maxExpiry = Date.now() + 86_400_000;
  const jwks: Jwks = { keys: [{ kty: 'EC', crv: 'P-256', x, y, kid, alg: 'ES256', use: 'sig' }] };
  const signer = (): Signer => {
    if (options.empty === true) throw new BrokerError('PROVIDER_UNAVAILABLE', 'no key');
    return { kid, key: privateKey, maxExpiry };
  };
  return { signer, maxExpiry: () => signer().maxExpiry, jwks: () => jwks };
}
