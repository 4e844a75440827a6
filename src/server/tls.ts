import { createHash, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { createSecureContext } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import type { Emit } from '../observability/observability.ts';
import type { TlsFiles } from './options.ts';
import { StartError } from './options.ts';

export interface KeyPair {
  cert: Buffer;
  key: Buffer;
}

/** Certificate and key as they are in use now; what is on disk replaces them when it is a working pair. */
export interface TlsSource {
  current(): KeyPair;
  /** Reads the files again; `apply` gets a new pair. Also done on a timer, so that a mounted secret needs no signal. */
  reload(): Promise<void>;
  close(): void;
}

export interface TlsSourceOptions {
  door: 'grpc' | 'http';
  files: TlsFiles;
  intervalMs: number;
  /** Puts a new pair into use; throws when it cannot be. */
  apply: (pair: KeyPair) => void;
  emit: Emit;
}

/** Floor for every door (RFC 9325 §3.1.1). */
const minTlsVersion = 'TLSv1.2';

/**
 * Polled, not watched: secrets are mounted as links that are swapped, which file watchers miss on several systems. The
 * two files are not swapped at once, so a pair that does not match is met in passing; it is reported once per content.
 */
export async function openTls({ door, files, intervalMs, apply, emit }: TlsSourceOptions): Promise<TlsSource> {
  let pair: KeyPair;
  try {
    pair = await load(files);
  } catch (cause) {
    throw new StartError(
      `The ${door === 'grpc' ? 'gRPC' : 'HTTP'} door cannot use ${files.certFile} with ${files.keyFile}: ${(cause as Error).message}.`,
      { cause },
    );
  }
  let refused: string | undefined;
  let running: Promise<void> | undefined;
  emit('tls.loaded', { door, certFile: files.certFile, notAfter: notAfter(pair) });

  async function check(): Promise<void> {
    try {
      const next = await load(files);
      if (next.cert.equals(pair.cert) && next.key.equals(pair.key)) {
        refused = undefined;
        return;
      }
      apply(next);
      pair = next;
      refused = undefined;
      emit('tls.loaded', { door, certFile: files.certFile, notAfter: notAfter(pair) });
    } catch (error) {
      const message = (error as Error).message;
      if (message === refused) return;
      refused = message;
      emit('tls.refused', { door, certFile: files.certFile, error });
    }
  }
  const reload = () => (running ??= check().finally(() => (running = undefined)));

  const timer = setInterval(() => void reload(), intervalMs).unref();
  return { current: () => pair, reload, close: () => clearInterval(timer) };
}

/** Throws unless the key belongs to the certificate. */
async function load({ certFile, keyFile }: TlsFiles): Promise<KeyPair> {
  const [cert, key] = await Promise.all([readFile(certFile), readFile(keyFile)]);
  createSecureContext({ cert, key, minVersion: minTlsVersion });
  return { cert, key };
}

function notAfter({ cert }: KeyPair): string {
  return new X509Certificate(cert).validToDate.toISOString();
}

/**
 * Asked for where a door is so configured, and never required. Who issued it does not matter (RFC 8705 §4): the handshake
 * shows that the caller holds its key, which is all that a token is bound to. Callers are known by their attestation.
 */
export function clientCertificates({ requestClientCertificate = false }: TlsFiles) {
  return { requestCert: requestClientCertificate, rejectUnauthorized: false };
}

/**
 * What every TLS context of a door has. No authority is trusted, instead of all that come with the runtime: one that bears the
 * name of a client's issuer by chance would be tried, and its failure breaks the connection (seen with OpenSSL 3.5).
 */
export function contextOf(pair: KeyPair): {
  cert: Buffer;
  key: Buffer;
  ca: string[];
  minVersion: typeof minTlsVersion;
} {
  return { ...pair, ca: [], minVersion: minTlsVersion };
}

/** RFC 8705 §3.1: base64url of the SHA-256 of the certificate's DER; undefined when the peer presented none. */
export function certificateThumbprint(socket: Socket | TLSSocket | undefined): string | undefined {
  // Asked for by name, not with `in`: the socket of an HTTP/2 session is a proxy that passes reads on alone.
  const read = (socket as Partial<TLSSocket> | undefined)?.getPeerX509Certificate;
  const certificate = read?.call(socket as TLSSocket);
  return certificate && createHash('sha256').update(certificate.raw).digest('base64url');
}
