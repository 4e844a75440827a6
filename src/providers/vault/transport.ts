import http from 'node:http';
import https from 'node:https';
import type { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { VaultFailure } from './failure.ts';

/** Issues and settlements have connections of their own, so that a rush of issues cannot hold up a revocation. */
export type Lane = 'issue' | 'settle';

export interface TransportOptions {
  address: URL;
  /** PEM files, read again by `reload`. */
  tls: () => { ca?: string; cert?: string; key?: string };
  /** Connections of each lane. */
  connections: Record<Lane, number>;
}

/** What node-vault hands to its HTTP client, as far as it comes from us. */
export interface SendOptions {
  uri: string;
  method: string;
  headers: Record<string, string>;
  json?: object | true;
  lane: Lane;
  /** Doing it twice does no more than doing it once. */
  repeatable: boolean;
  signal: AbortSignal;
}

export interface Answer {
  status: number;
  /** Parsed JSON; undefined when there was none. */
  body: unknown;
  retryAfter: string | undefined;
}

class StaleConnection extends VaultFailure {}

const maxAnswerBytes = 8 * 1024 * 1024;
/** Shorter than a load balancer keeps an idle connection, so that a call seldom meets one that is just being closed. */
const idleTimeout = 15_000;
/** Calls that may wait for a connection of their lane. */
const maxWaiting = 2_000;

/**
 * The HTTP client under node-vault, instead of the one that it brings: that one has no time-out, follows a redirect with the
 * token to whatever host it names, and cannot be told to give up.
 */
export function createTransport(options: TransportOptions) {
  const secure = options.address.protocol === 'https:';
  let files = '';
  let agents = open();
  let waiting = 0;

  return {
    send,
    /** Takes certificates and keys that were replaced in their files; connections under way end in peace. */
    reload: () => {
      if (!secure || JSON.stringify(options.tls()) === files) return;
      const before = agents;
      agents = open();
      setTimeout(() => destroy(before), 60_000).unref();
    },
    close: () => destroy(agents),
  };

  function open(): Record<Lane, http.Agent> {
    const tls = secure ? options.tls() : {};
    files = JSON.stringify(tls);
    const agent = (lane: Lane) => {
      const common = { keepAlive: true, maxSockets: options.connections[lane], timeout: idleTimeout, ...tls };
      return secure
        ? new https.Agent({ ...common, minVersion: 'TLSv1.2', rejectUnauthorized: true })
        : new http.Agent(common);
    };
    return { issue: agent('issue'), settle: agent('settle') };
  }

  async function send({ uri, method, headers, json, lane, repeatable, signal }: SendOptions): Promise<Answer> {
    if (signal.aborted) throw new VaultFailure('the call ran out of time before it was sent', { outcome: 'unsent' });
    if (waiting >= maxWaiting) throw new VaultFailure('too many calls wait for this server', { outcome: 'unsent' });
    waiting += 1;
    try {
      const body = typeof json === 'object' ? JSON.stringify(json) : undefined;
      const once = () => exchange(uri, method, headers, body, lane, signal);
      try {
        return await once();
      } catch (error) {
        // An idle connection that the server closed at the very moment in which it was used again.
        if (!repeatable || !(error instanceof StaleConnection) || signal.aborted) throw error;
        return await once();
      }
    } finally {
      waiting -= 1;
    }
  }

  function exchange(
    uri: string,
    method: string,
    headers: Record<string, string>,
    body: string | undefined,
    lane: Lane,
    signal: AbortSignal,
  ): Promise<Answer> {
    return new Promise((resolve, reject) => {
      let reached = false;
      const fail = (error: Error) => {
        const code = (error as NodeJS.ErrnoException).code ?? error.name;
        const why = signal.aborted ? 'did not answer in time' : `cannot be reached (${code})`;
        const stale = request.reusedSocket && (code === 'ECONNRESET' || code === 'EPIPE');
        const Failure = stale ? StaleConnection : VaultFailure;
        reject(new Failure(why, { outcome: reached ? 'unknown' : 'unsent' }));
      };
      const request = (secure ? https : http).request(uri, {
        method,
        agent: agents[lane],
        headers: {
          ...headers,
          ...(body === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
        },
      });
      // Instead of the option `signal`, which watches the stream for every way to end: a tenth of what a call costs.
      const abort = () => void request.destroy(new Error('aborted'));
      signal.addEventListener('abort', abort, { once: true });
      request.on('close', () => signal.removeEventListener('abort', abort));
      request.on('error', fail);
      request.on('socket', (socket: Socket | TLSSocket) => {
        if (!socket.connecting && !(secure && socket.pending)) reached = true;
        else socket.once(secure ? 'secureConnect' : 'connect', () => (reached = true));
      });
      request.on('response', (response) => {
        const chunks: Buffer[] = [];
        let size = 0;
        response.on('data', (chunk: Buffer) => {
          size += chunk.length;
          if (size > maxAnswerBytes) request.destroy(new Error('the answer is too large'));
          else chunks.push(chunk);
        });
        response.on('error', fail);
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString('utf8');
          const retryAfter = response.headers['retry-after'];
          resolve({ status: response.statusCode ?? 0, body: parsed(text), retryAfter });
        });
      });
      request.end(body);
    });
  }
}

function destroy(agents: Record<Lane, http.Agent>): void {
  for (const agent of Object.values(agents)) agent.destroy();
}

/** Vault speaks JSON; what is none comes from something in between, and says nothing that could be used. */
function parsed(text: string): unknown {
  if (text === '') return undefined;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
