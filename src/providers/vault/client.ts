import type { Millis } from '../../domain/time.ts';
import { within } from '../../domain/within.ts';
import { saidBy, VaultFailure } from './failure.ts';
import { createTransport, type Answer, type Lane, type SendOptions } from './transport.ts';

export interface VaultClientOptions {
  address: string;
  namespace?: string | undefined;
  tls: () => { ca?: string; cert?: string; key?: string };
  connections: Record<Lane, number>;
  /** Longest time of one call. */
  timeout: Millis;
}

export interface VaultCall {
  method: 'GET' | 'LIST' | 'POST';
  /** Below /v1/, without a query. */
  path: string;
  query?: Readonly<Record<string, string>> | undefined;
  body?: object | undefined;
  token?: string | undefined;
  /** Seconds for which Vault keeps the answer wrapped. */
  wrapSeconds?: number | undefined;
  lane: Lane;
  /** Doing it twice does no more than doing it once; so it is with all calls of a settlement. */
  repeatable?: boolean;
  signal: AbortSignal;
  timeout?: Millis;
}

export interface VaultAnswer {
  status: number;
  body: Record<string, unknown>;
}

export interface VaultClient {
  /** Answers only what Vault did; everything else is a VaultFailure. */
  call(call: VaultCall): Promise<VaultAnswer>;
  reload(): void;
  close(): void;
}

/** The part of node-vault that is used. */
interface NodeVault {
  token: string;
  namespace: string;
  pathPrefix: string;
  handleVaultResponse: (answer: unknown) => unknown;
  request(options: object): Promise<unknown>;
}

const pathPattern = /^[A-Za-z0-9_.:@+,-]+(?:\/[A-Za-z0-9_.:@+,-]+)*\/?$/;

/** Whether it stays below the mount that it begins with: no `..`, nothing encoded, no query. */
export function isVaultPath(path: string): boolean {
  return path.length <= 512 && pathPattern.test(path) && !path.split('/').some((part) => part === '.' || part === '..');
}

/**
 * All calls to one Vault server go through here, over node-vault with three of its parts replaced by what it lets be
 * replaced. Seen by running it (0.12): its HTTP client has no time-out and follows redirects with the token; its generated
 * commands ignore `sync`, refuse a 202, and swap the client's own token for one that was just made; DEBUG prints paths,
 * bodies and with them secrets; its errors carry the request with the token; and it takes VAULT_TOKEN, VAULT_NAMESPACE and
 * VAULT_PREFIX from the environment. So: a transport of ours, no commands, no debug, no handling of answers, and the token
 * with each call. test/vault/client.test.ts has each of these.
 */
export async function createVaultClient(options: VaultClientOptions): Promise<VaultClient> {
  // Loaded by those who have a Vault: it brings an HTTP client, a validator and a template language.
  const { default: nodeVault } = await import('node-vault');
  const address = new URL(options.address);
  const transport = createTransport({ address, tls: options.tls, connections: options.connections });
  const vault = nodeVault({
    apiVersion: 'v1',
    endpoint: address.href.replace(/\/$/, ''),
    debug: () => undefined,
    commands: {},
    'request-promise': { defaults: () => (request: SendOptions) => transport.send(request) },
  } as object) as unknown as NodeVault;
  Object.assign(vault, { token: '', namespace: '', pathPrefix: '', handleVaultResponse: (answer: unknown) => answer });

  return {
    async call(call) {
      const { method, path, token } = call;
      const what = `${method} ${path}`;
      if (!isVaultPath(path)) throw new VaultFailure(`${what}: not a path below one mount`, { outcome: 'unsent' });
      const query = call.query === undefined ? '' : `?${new URLSearchParams(call.query).toString()}`;
      const request = {
        path: `/${path}${query}`,
        method,
        headers: headersOf(call, options.namespace),
        lane: call.lane,
        repeatable: call.repeatable ?? call.lane === 'settle',
        ...(call.body === undefined ? {} : { json: call.body }),
      };
      let answer: Answer;
      try {
        const send = (signal: AbortSignal) => vault.request({ ...request, signal });
        answer = (await within(call.timeout ?? options.timeout, send, call.signal)) as Answer;
      } catch (error) {
        if (!(error instanceof VaultFailure))
          throw new VaultFailure(`${what}: could not be sent`, { outcome: 'unsent' });
        throw new VaultFailure(`${what}: the server ${error.message}`, error);
      }
      const { status, body } = answer;
      if (status >= 200 && status < 300) return { status, body: (body ?? {}) as VaultAnswer['body'] };
      throw refused(what, answer, token);
    },
    reload: () => transport.reload(),
    close: () => transport.close(),
  };
}

function headersOf(call: VaultCall, namespace: string | undefined): Record<string, string> {
  return {
    accept: 'application/json',
    // Vault can be set to demand it, against requests that a browser or a confused server was made to send.
    'x-vault-request': 'true',
    ...(call.token === undefined ? {} : { 'x-vault-token': call.token }),
    ...(namespace === undefined ? {} : { 'x-vault-namespace': namespace }),
    ...(call.wrapSeconds === undefined ? {} : { 'x-vault-wrap-ttl': String(call.wrapSeconds) }),
  };
}

function refused(what: string, { status, body, retryAfter }: Answer, token: string | undefined): VaultFailure {
  const said = saidBy(body, [token]);
  if (status >= 300 && status < 400) {
    return new VaultFailure(
      `${what}: the server wants to send us elsewhere (${status}), and the token goes nowhere else: configure the address of the active node or of a load balancer`,
      { status, outcome: 'refused' },
    );
  }
  return new VaultFailure(`${what}: ${status}${said === '' ? '' : ` ${said}`}`, {
    status,
    said,
    // A gateway does not know what became of it, and neither does a Vault that failed while it kept the lease.
    outcome: status === 502 || status === 504 || (status === 500 && !plainlyFailed(body, said)) ? 'unknown' : 'refused',
    retryAfterMs: retryAfterMs(retryAfter),
  });
}

function plainlyFailed(body: unknown, said: string): boolean {
  return Array.isArray((body as { errors?: unknown } | undefined)?.errors) && !/lease|regist/i.test(said);
}

/** RFC 9110 §10.2.3, seconds; a date is not worth a clock comparison. */
function retryAfterMs(value: string | undefined): Millis | undefined {
  if (value === undefined || !/^\d{1,4}$/.test(value)) return undefined;
  return Number(value) * 1_000;
}
