import { BlockList, isIP } from 'node:net';
import type { ChainLimits } from '../api/chain/chain.ts';

export interface TlsFiles {
  /** PEM: the leaf first, then its intermediates. */
  certFile: string;
  /** PEM, unencrypted. */
  keyFile: string;
  /** Asks clients for a certificate, which tokens can then be bound to (RFC 8705). */
  requestClientCertificate?: boolean | undefined;
}

export interface DoorListen {
  /** Address to bind: an IP address or a host name of this machine. */
  host: string;
  /** 0 lets the system choose. */
  port: number;
  tls?: TlsFiles | undefined;
  /** Without TLS a door opens on loopback only, unless this says otherwise. Tokens and credentials cross it in the clear. */
  allowPlaintext?: boolean | undefined;
}

export interface DoorLimits extends ChainLimits {
  /** Of one message, both directions. */
  maxMessageBytes: number;
  /** TCP connections of one door. */
  maxConnections: number;
  /** HTTP/2 streams of one connection. */
  maxStreamsPerConnection: number;
  /** From the first byte of a request to its last. */
  requestTimeoutMs: number;
  /** For the header block of an HTTP/1.1 request, and for a TLS handshake. */
  headersTimeoutMs: number;
  /** A connection without calls is closed after this. */
  idleTimeoutMs: number;
  /** HTTP/2 PING to find dead peers. */
  keepaliveMs: number;
  keepaliveTimeoutMs: number;
}

export const defaultLimits: DoorLimits = {
  maxMessageBytes: 1_048_576,
  maxConnections: 10_000,
  maxStreamsPerConnection: 1_000,
  requestTimeoutMs: 30_000,
  headersTimeoutMs: 10_000,
  idleTimeoutMs: 300_000,
  keepaliveMs: 30_000,
  keepaliveTimeoutMs: 10_000,
  defaultDeadlineMs: 30_000,
  maxDeadlineMs: 300_000,
  callsPerSecond: 1_000,
  burst: 2_000,
  streamsPerCaller: 100,
  maxCallers: 50_000,
  maxInFlight: 10_000,
  maxStreams: 10_000,
  streamStallMs: 30_000,
  perTenant: () => undefined,
};

/** The broker cannot start as it is configured; the message says what to change. */
export class StartError extends Error {
  override readonly name = 'StartError';
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

export function isLoopback(host: string): boolean {
  const version = isIP(host);
  if (version === 0) return host === 'localhost';
  return loopback.check(host, version === 4 ? 'ipv4' : 'ipv6');
}

/** Tokens and credentials must not cross a network in the clear because somebody forgot a line of configuration. */
export function checkPlaintext(door: string, listen: DoorListen): void {
  if (listen.tls !== undefined || listen.allowPlaintext === true || isLoopback(listen.host)) return;
  throw new StartError(
    `The ${door} door would serve ${listen.host}:${listen.port} without TLS. Give it a certificate and key, bind it to ` +
      'loopback, or set allow_plaintext when something in front of it terminates TLS.',
  );
}
