import type { Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';

/** The broker's HTTP door, or whatever way to it the tool brings. */
export function transportOf(options: { baseUrl?: string; transport?: Transport }): Transport {
  if (options.transport !== undefined) return options.transport;
  if (options.baseUrl === undefined) throw new TypeError('give the baseUrl of the broker, or a transport');
  return createConnectTransport({ baseUrl: options.baseUrl, httpVersion: '1.1', readMaxBytes: 4 * 1024 * 1024 });
}
