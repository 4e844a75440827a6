import { createPrivateKey, createPublicKey, randomUUID, type KeyObject } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import type { DescMethod } from '@bufbuild/protobuf';
import { SignJWT } from 'jose';
import { CliError } from './cli-error.ts';

const algorithms: Readonly<Record<string, string>> = {
  prime256v1: 'ES256',
  secp384r1: 'ES384',
  secp521r1: 'ES512',
  ed25519: 'EdDSA',
  rsa: 'PS256',
};

/** Options of commands that can have a credential bound to a key. */
export interface DpopOptions {
  server: string;
  dpopKey?: string;
  dpopIssuer?: string;
}

/**
 * A proof (RFC 9449 §4.2) for one call, of the private key in a file; empty without --dpop-key. The key is read anew each
 * time and never printed.
 */
export async function dpopProof(method: DescMethod, options: DpopOptions): Promise<string> {
  if (options.dpopKey === undefined) return '';
  const key = await readKey(options.dpopKey);
  const alg = algorithms[key.asymmetricKeyDetails?.namedCurve ?? key.asymmetricKeyType ?? ''];
  if (alg === undefined) {
    throw new CliError('usage', `${options.dpopKey} holds a key of a kind that proofs cannot be made with; use P-256`, {
      reason: 'KEY_UNUSABLE',
    });
  }
  const issuer = (options.dpopIssuer ?? options.server).replace(/\/$/, '');
  return await new SignJWT({
    jti: randomUUID(),
    htm: 'POST',
    htu: `${issuer}/${method.parent.typeName}/${method.name}`,
  })
    .setProtectedHeader({ typ: 'dpop+jwt', alg, jwk: publicJwk(key) })
    .setIssuedAt()
    .sign(key);
}

function publicJwk(key: KeyObject) {
  return createPublicKey(key).export({ format: 'jwk' });
}

async function readKey(path: string): Promise<KeyObject> {
  const unusable = (why: string) => new CliError('usage', `--dpop-key ${path}: ${why}`, { reason: 'KEY_UNUSABLE' });
  let text: string;
  try {
    const { mode } = await stat(path);
    if ((mode & 0o077) !== 0) throw new Error('others can read it; chmod 600 it, or make a new one');
    text = await readFile(path, 'utf8');
  } catch (error) {
    throw unusable((error as Error).message);
  }
  try {
    const isJwk = text.trimStart().startsWith('{');
    return isJwk
      ? createPrivateKey({ key: JSON.parse(text) as never, format: 'jwk' })
      : createPrivateKey({ key: text, format: 'pem' });
  } catch {
    throw unusable('it holds no private key, as PEM or JWK and without a passphrase');
  }
}
