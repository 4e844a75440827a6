import { createHash, createHmac, pbkdf2 } from 'node:crypto';
import { promisify } from 'node:util';
import type { RandomBytes } from '../../domain/time.ts';

const derive = promisify(pbkdf2);

/** RFC 7677 §4 asks for at least 4,096, and clients refuse less. The password has 256 bits: more would add nothing. */
const iterations = 4096;

export interface LoginSecret {
  password: string;
  /** What the target stores (RFC 5803): the clear password never reaches its statements, nor its log. */
  verifier: string;
}

export async function makeLoginSecret(random: RandomBytes): Promise<LoginSecret> {
  const password = Buffer.from(random(32)).toString('base64url');
  return { password, verifier: await scramVerifier(password, random(16)) };
}

/** `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` (RFC 5803 §3; RFC 5802 §3). The password is ASCII, so SASLprep leaves it alone. */
export async function scramVerifier(password: string, salt: Uint8Array): Promise<string> {
  const salted = await derive(password, salt, iterations, 32, 'sha256');
  const clientKey = createHmac('sha256', salted).update('Client Key').digest();
  const storedKey = createHash('sha256').update(clientKey).digest('base64');
  const serverKey = createHmac('sha256', salted).update('Server Key').digest('base64');
  return `SCRAM-SHA-256$${iterations}:${Buffer.from(salt).toString('base64')}$${storedKey}:${serverKey}`;
}

export interface SecretSource {
  take(): Promise<LoginSecret>;
  close(): void;
}

/**
 * Deriving a verifier costs about as much as the statement that uses it. A few are made ahead, on the thread pool while
 * the target works; they belong to no login until one is taken.
 */
export function createSecretSource(random: RandomBytes, ahead: number): SecretSource {
  const ready: Promise<LoginSecret>[] = [];
  let closed = false;
  const fill = () => {
    while (!closed && ready.length < ahead) {
      const secret = makeLoginSecret(random);
      secret.catch(() => undefined);
      ready.push(secret);
    }
  };
  fill();
  return {
    async take() {
      const secret = ready.shift() ?? makeLoginSecret(random);
      fill();
      return await secret;
    },
    close() {
      closed = true;
      ready.length = 0;
    },
  };
}
