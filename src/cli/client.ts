import { readFileSync, statSync } from 'node:fs';
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import { Code, ConnectError, type Transport } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import type {
  DescMessage,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from '@bufbuild/protobuf';
import { readAttestation } from './attestation.ts';
import { CliError } from './cli-error.ts';
import type { RemoteOptions } from './define.ts';
import { remoteError, retryDelay } from './remote-error.ts';
import { version } from '../version.ts';

const mostTries = 5;
const firstPause = 200;
const longestPause = 5_000;

export interface Client {
  /** One answer. UNAVAILABLE is tried again with the very same message, so with the same request_id, within the time-out. */
  call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    message: MessageInitShape<I>,
  ): Promise<MessageShape<O>>;
  /** A stream's messages. With `resume`, a stream that breaks is begun again: only for those that change nothing. */
  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    message: MessageInitShape<I>,
    resume: boolean,
  ): AsyncIterable<MessageShape<O>>;
}

/** Of commands that can have a credential bound to the certificate of their connection. */
export interface CertificateOptions {
  clientCert?: string;
  clientKey?: string;
}

export function connect(options: RemoteOptions & CertificateOptions): Client {
  refusePlaintext(options);
  const transport = createTransport(options);
  const headers = async () => ({
    authorization: `Bearer ${await readAttestation(options.tokenFile)}`,
    'user-agent': `leasehold-cli/${version}`,
  });
  return {
    call: async (method, message) => {
      const until = Date.now() + options.timeout;
      for (let tries = 1; ; tries++) {
        try {
          const left = Math.max(1, until - Date.now());
          const answer = await transport.unary(method, undefined, left, await headers(), message, undefined);
          return answer.message;
        } catch (error) {
          const wait = pause(error, tries);
          if (wait === undefined || Date.now() + wait >= until) {
            throw remoteError(error, options.server, requestIdOf(message));
          }
          await sleep(wait);
        }
      }
    },
    stream: async function* (method, message, resume) {
      for (let tries = 1; ; tries++) {
        const first = new AbortController();
        const timer = setTimeout(
          () => first.abort(new ConnectError('no message in time', Code.DeadlineExceeded)),
          options.timeout,
        );
        let begun = false;
        try {
          const messages = (async function* () {
            yield message;
          })();
          const answer = await transport.stream(method, first.signal, undefined, await headers(), messages, undefined);
          for await (const next of answer.message) {
            clearTimeout(timer);
            begun = true;
            tries = 1;
            yield next;
          }
          return;
        } catch (error) {
          const cause: unknown = first.signal.aborted ? first.signal.reason : error;
          const wait = begun && !resume ? undefined : pause(cause, tries);
          if (wait === undefined) throw remoteError(cause, options.server, requestIdOf(message));
          await sleep(wait);
        } finally {
          clearTimeout(timer);
        }
      }
    },
  };
}

function createTransport(options: RemoteOptions & CertificateOptions): Transport {
  const secure = options.server.startsWith('https:');
  // No kept connection: the process ends when its work does.
  const agent = secure
    ? new HttpsAgent({
        keepAlive: false,
        minVersion: 'TLSv1.2',
        ...readAuthorities(options.caFile),
        ...readCertificate(options),
      })
    : new HttpAgent({ keepAlive: false });
  return createConnectTransport({
    baseUrl: options.server,
    httpVersion: '1.1',
    nodeOptions: { agent },
    readMaxBytes: 16 * 1024 * 1024,
  });
}

function readAuthorities(path: string | undefined): { ca?: Buffer } {
  if (path === undefined) return {};
  try {
    return { ca: readFileSync(path) };
  } catch (error) {
    throw new CliError('usage', `the file of --ca-file cannot be read (${(error as Error).message}); name a PEM file`, {
      reason: 'USAGE',
      cause: error,
    });
  }
}

/** A client certificate, for credentials that are bound to it. */
function readCertificate({ clientCert, clientKey }: CertificateOptions): { cert?: Buffer; key?: Buffer } {
  if (clientCert === undefined && clientKey === undefined) return {};
  if (clientCert === undefined || clientKey === undefined) {
    throw new CliError('usage', '--client-cert and --client-key go together', { reason: 'USAGE' });
  }
  try {
    if ((statSync(clientKey).mode & 0o077) !== 0) {
      throw new CliError('usage', `--client-key ${clientKey}: others can read it; chmod 600 it`, {
        reason: 'KEY_UNUSABLE',
      });
    }
    return { cert: readFileSync(clientCert), key: readFileSync(clientKey) };
  } catch (error) {
    if (error instanceof CliError) throw error;
    const message = `the client certificate cannot be read (${(error as Error).message}); name PEM files`;
    throw new CliError('usage', message, { reason: 'USAGE', cause: error });
  }
}

/** The attestation is a bearer token: whoever sees it on the way can act with it. */
function refusePlaintext(options: RemoteOptions): void {
  const url = new URL(options.server);
  const loopback =
    url.hostname === 'localhost' || url.hostname === '[::1]' || /^127\.\d+\.\d+\.\d+$/.test(url.hostname);
  if (url.protocol === 'https:' || loopback || options.allowPlaintext === true) return;
  throw new CliError(
    'usage',
    `the attestation is not sent over plain http to ${url.host}; use https://, or --allow-plaintext where the network is trusted`,
    { reason: 'PLAINTEXT_REFUSED' },
  );
}

/** How long to wait before the next try; undefined when there is none. */
function pause(error: unknown, tries: number): number | undefined {
  if (error instanceof CliError || tries >= mostTries) return undefined;
  if (ConnectError.from(error).code !== Code.Unavailable) return undefined;
  const grown = Math.min(longestPause, firstPause * 2 ** (tries - 1));
  // Half of it random: many command lines that lost one broker do not come back at once.
  return Math.min(longestPause, retryDelay(error) ?? grown / 2 + (Math.random() * grown) / 2);
}

function requestIdOf(message: object): string | undefined {
  return 'requestId' in message && typeof message.requestId === 'string' ? message.requestId : undefined;
}

/** A message that an answer has to hold: without it, what answered is no broker of this contract. */
export function required<T>(value: T | undefined): T {
  if (value !== undefined) return value;
  throw new CliError(
    'unexpected',
    'the broker’s answer lacks a part that it must have; check that it is of this release',
    {
      reason: 'ANSWER_INCOMPLETE',
    },
  );
}
