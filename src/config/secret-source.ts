import { readFileSync, statSync } from 'node:fs';

/**
 * Where a secret comes from. Read when it is needed, so that a changed file counts at the next use, and so that the
 * configuration as a value never holds one.
 */
export interface SecretSource {
  /** `file:<path>`, `env:<NAME>` or `inline`; safe to show. */
  readonly source: string;
  /** The secret, without a trailing newline. Throws a plain Error that says what to do, never with the secret in it. */
  read(): string;
}

export type Environment = Readonly<Record<string, string | undefined>>;

const maxSecretBytes = 64 * 1024;

export function fileSecret(field: string, path: string): SecretSource {
  return Object.freeze({
    source: `file:${path}`,
    read: () => {
      const problem = fileProblem(path, maxSecretBytes);
      if (problem !== undefined) throw new Error(`${field}: ${problem}`);
      const text = readFileSync(path, 'utf8').replace(/\r?\n$/, '');
      if (text === '') throw new Error(`${field}: ${path} is empty`);
      return text;
    },
  });
}

export function envSecret(field: string, name: string, env: Environment): SecretSource {
  return Object.freeze({
    source: `env:${name}`,
    read: () => {
      const text = env[name];
      if (text === undefined || text === '') throw new Error(`${field}: the environment variable ${name} is not set`);
      return text;
    },
  });
}

/** Only for values that are refused when they hold a password. */
export function inlineValue(text: string): SecretSource {
  return Object.freeze({ source: 'inline', read: () => text });
}

/** Why a file cannot be used, in a few words. */
export function fileProblem(path: string, maxBytes = 4 * 1024 * 1024): string | undefined {
  try {
    const stat = statSync(path);
    if (!stat.isFile()) return `${path} is not a file`;
    if (stat.size > maxBytes) return `${path} is larger than ${maxBytes} bytes`;
    readFileSync(path);
    return undefined;
  } catch (error) {
    return `${path} ${fsReason(error)}`;
  }
}

export function fsReason(error: unknown): string {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  if (code === 'ENOENT') return 'does not exist';
  if (code === 'EACCES' || code === 'EPERM') return 'may not be read by this user';
  if (code === 'ENOTDIR') return 'does not exist: a part of its path is a file';
  return `cannot be read (${code ?? 'unknown reason'})`;
}

/** A sealing key: 32 bytes in base64 (RFC 4648 §4), nothing else. */
export function readSealingKey(source: SecretSource): Uint8Array {
  const text = source.read().trim();
  const bytes = Buffer.from(text, 'base64');
  if (bytes.length !== 32 || bytes.toString('base64') !== text) {
    throw new Error(
      `${source.source}: the sealing key must be 32 bytes in base64; make one with: openssl rand -base64 32`,
    );
  }
  return bytes;
}

/** Standard Webhooks: `whsec_` and base64 of 24 to 64 bytes. */
export function readWebhookSecret(source: SecretSource): Uint8Array {
  const text = source
    .read()
    .trim()
    .replace(/^whsec_/, '');
  const bytes = Buffer.from(text, 'base64');
  if (bytes.length < 24 || bytes.length > 64 || bytes.toString('base64') !== text) {
    throw new Error(
      `${source.source}: a webhook's secret must be whsec_ and 24 to 64 bytes in base64; make one with: openssl rand -base64 32`,
    );
  }
  return bytes;
}
