import { createCipheriv, createDecipheriv, hkdfSync } from 'node:crypto';
import type { RandomBytes } from '../domain/time.ts';

/** What a sealed value belongs to. Bound as associated data: a row copied to another place does not open there. */
export interface SealContext {
  tenant: string;
  purpose: string;
  /** Identifier of the row, e.g. the `kid`. */
  id: string;
}

export interface Sealer {
  /** Identifier of the key that seals now. Not secret. */
  keyId: string;
  seal(plain: Uint8Array, context: SealContext): Buffer;
  /** Throws SealError when the key is not configured, or the value was altered or moved. */
  open(sealed: Uint8Array, context: SealContext): Buffer;
}

export class SealError extends Error {
  override readonly name = 'SealError';
}

export interface SealerOptions {
  /** 32 bytes. */
  current: Uint8Array;
  /** Earlier keys that still open, so that the sealing key can be replaced while the broker runs. */
  previous?: readonly Uint8Array[];
  random: RandomBytes;
}

const version = 1;
const keyIdBytes = 8;
const nonceBytes = 12;
const tagBytes = 16;
const headBytes = 1 + keyIdBytes + nonceBytes;

/**
 * AES-256-GCM envelopes: version (1) ‖ key id (8) ‖ nonce (12) ‖ ciphertext ‖ tag (16). The key id is derived from the
 * key, so that no one has to name keys and a wrong one is told apart from an altered value.
 */
export function createSealer(options: SealerOptions): Sealer {
  const keys = new Map<string, Buffer>();
  for (const [index, key] of [options.current, ...(options.previous ?? [])].entries()) {
    if (key.length !== 32) {
      const which = index === 0 ? 'the current sealing key' : `previous sealing key ${index}`;
      throw new SealError(`${which} has ${key.length} bytes; it must have 32 (make one with \`openssl rand 32\`)`);
    }
    keys.set(idOf(key), Buffer.from(key));
  }
  const keyId = idOf(options.current);
  const currentKey = keys.get(keyId)!;

  return {
    keyId,
    seal(plain, context) {
      const head = Buffer.concat([Buffer.of(version), Buffer.from(keyId, 'hex'), options.random(nonceBytes)]);
      if (head.length !== headBytes) throw new SealError('the source of randomness gave too few bytes');
      const cipher = createCipheriv('aes-256-gcm', currentKey, head.subarray(1 + keyIdBytes), {
        authTagLength: tagBytes,
      });
      cipher.setAAD(associatedData(head.subarray(0, 1 + keyIdBytes), context));
      return Buffer.concat([head, cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
    },
    open(sealed, context) {
      const bytes = Buffer.from(sealed.buffer, sealed.byteOffset, sealed.byteLength);
      const what = `${context.purpose} ${context.id}`;
      if (bytes.length < headBytes + tagBytes || bytes[0] !== version) {
        throw new SealError(`${what}: not a sealed value of version ${version}`);
      }
      const id = bytes.toString('hex', 1, 1 + keyIdBytes);
      const key = keys.get(id);
      if (key === undefined) {
        const have = [...keys.keys()].join(', ');
        throw new SealError(
          `${what}: sealed under key ${id}, which is not configured (configured: ${have}); add that key as a previous sealing key`,
        );
      }
      const decipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(1 + keyIdBytes, headBytes), {
        authTagLength: tagBytes,
      });
      decipher.setAAD(associatedData(bytes.subarray(0, 1 + keyIdBytes), context));
      decipher.setAuthTag(bytes.subarray(bytes.length - tagBytes));
      try {
        return Buffer.concat([decipher.update(bytes.subarray(headBytes, bytes.length - tagBytes)), decipher.final()]);
      } catch {
        throw new SealError(`${what}: the sealed value was altered, or belongs to another tenant, purpose or row`);
      }
    },
  };
}

function idOf(key: Uint8Array): string {
  return Buffer.from(hkdfSync('sha256', key, '', 'leasehold sealing key id', keyIdBytes)).toString('hex');
}

/** Length-prefixed, so that no two contexts have the same bytes. */
function associatedData(head: Uint8Array, context: SealContext): Buffer {
  const parts: Uint8Array[] = [head];
  for (const field of [context.tenant, context.purpose, context.id]) {
    const bytes = Buffer.from(field, 'utf8');
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    parts.push(length, bytes);
  }
  return Buffer.concat(parts);
}
