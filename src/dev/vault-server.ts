import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from './postgres.ts';
import { vaultErrors, vaultRequest, type VaultRequest, type VaultResponse } from './vault-request.ts';

export type VaultStorage = 'inmem' | 'file' | 'raft';

export interface VaultServerOptions {
  binary: string;
  /** Holds the configuration, the storage, the log, and the keys (mode 0600). What it holds already is used again. */
  dir: string;
  /** `inmem` forgets everything when the process ends. */
  storage: VaultStorage;
  port?: number;
  /** PEM. Without it the server speaks plain HTTP, on loopback only. */
  tls?: { cert: string; key: string; ca: string };
}

export interface VaultServer {
  address: string;
  storage: VaultStorage;
  /** PEM file of the authority of its certificate. */
  caFile: string | undefined;
  rootToken: string;
  unsealKey: string;
  pid(): number;
  /** All that the server has logged in this folder. */
  log(): string;
  /** Any call; the answer as it comes. */
  request(request: VaultRequest): Promise<VaultResponse>;
  /** A call with the root token that has to succeed. Answers the `data` of what comes, or all of it. */
  root<T = Record<string, unknown>>(method: VaultRequest['method'], path: string, body?: object): Promise<T>;
  seal(): Promise<void>;
  unseal(): Promise<void>;
  /** Resolves when the server serves: unsealed, and the leader. */
  active(): Promise<void>;
  /** SIGTERM, and waits: Vault seals itself. */
  stop(): Promise<void>;
  /** SIGKILL, and waits. */
  kill(): Promise<void>;
  /** After `stop` or `kill`, on the same address. Unseals unless told otherwise. */
  start(options?: { unseal?: boolean }): Promise<void>;
  /** From when this resolves, connections are accepted (by the kernel) and nothing is answered, until `thaw`. */
  freeze(): Promise<void>;
  thaw(): void;
}

interface Keys {
  rootToken: string;
  unsealKey: string;
}

const startTimeout = 60_000;
const stopTimeout = 20_000;
const pollEvery = 50;

/** A real Vault (or OpenBao) server with one unseal key. For development and tests only: whoever reads the folder holds its keys. */
export async function startVaultServer(options: VaultServerOptions): Promise<VaultServer> {
  const { dir, storage, tls } = options;
  await mkdir(dir, { recursive: true, mode: 0o700 });
  await chmod(dir, 0o700);
  const logFile = path.join(dir, 'vault.log');
  const caFile = path.join(dir, 'ca.pem');
  const port = options.port ?? (await freePort());
  const address = `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${port}`;
  const endpoint = { address, ...(tls === undefined ? {} : { ca: tls.ca }) };
  if (tls !== undefined) await writeFile(caFile, tls.ca);
  const configFile = await writeConfiguration(options, port);
  const call = (request: VaultRequest) => vaultRequest(endpoint, request);

  let keys: Keys | undefined;
  let child: ChildProcess | undefined;
  let stopAtExit = (): void => undefined;

  const end = async (signal: NodeJS.Signals) => {
    const ending = child;
    if (ending === undefined) return;
    child = undefined;
    process.removeListener('exit', stopAtExit);
    if (ending.exitCode !== null || ending.signalCode !== null) return;
    const exited = once(ending, 'exit');
    ending.kill(signal);
    // A frozen process has to be woken to hear of it.
    ending.kill('SIGCONT');
    const timer = setTimeout(() => ending.kill('SIGKILL'), stopTimeout);
    await exited;
    clearTimeout(timer);
  };

  /** Polls what the server says of itself until `good`, as long as it lives and not for ever. */
  const until = async (good: (status: number) => boolean, what: string) => {
    const running = child;
    const deadline = Date.now() + startTimeout;
    for (;;) {
      const status = await call({ method: 'GET', path: 'sys/health', timeoutMs: 5_000 }).then(
        (answer) => answer.status,
        () => 0,
      );
      if (good(status)) return;
      const gone = running === undefined || running.exitCode !== null || running.signalCode !== null;
      if (gone || Date.now() > deadline) {
        const tail = existsSync(logFile) ? readFileSync(logFile, 'utf8').split('\n').slice(-15).join('\n') : '';
        throw new Error(
          `Vault at ${address} ${gone ? 'ended' : `did not ${what} within ${startTimeout / 1_000} s`}\n${tail}`,
        );
      }
      await sleep(pollEvery);
    }
  };

  const root: VaultServer['root'] = async <T>(method: VaultRequest['method'], at: string, body?: object) => {
    const answer = await call({ method, path: at, token: keys!.rootToken, ...(body === undefined ? {} : { body }) });
    if (answer.status >= 300) throw new Error(`Vault refused ${method} ${at}: ${vaultErrors(answer)}`);
    return (answer.json['data'] ?? answer.json) as T;
  };
  const active = () => until((status) => status === 200, 'become active');
  const unseal = async () => {
    const answer = await call({ method: 'PUT', path: 'sys/unseal', body: { key: keys!.unsealKey } });
    if (answer.status !== 200) throw new Error(`Vault could not be unsealed: ${vaultErrors(answer)}`);
    await active();
  };
  const start = async () => {
    if (child !== undefined) throw new Error('this Vault runs already');
    const log = openSync(logFile, 'a', 0o600);
    // Nothing of the caller's environment: VAULT_* and proxies would change what the server does.
    const env = { PATH: process.env['PATH'] ?? '', HOME: dir };
    child = spawn(options.binary, ['server', `-config=${configFile}`], { env, cwd: dir, stdio: ['ignore', log, log] });
    closeSync(log);
    const started = child;
    started.on('error', () => undefined);
    stopAtExit = () => void started.kill('SIGKILL');
    process.once('exit', stopAtExit);
    // Any answer: 501 is not initialised, 503 is sealed.
    await until((status) => status !== 0, 'answer');
  };

  try {
    await start();
    keys = await keysOf(call, path.join(dir, 'vault-keys.json'));
    await unseal();
  } catch (error) {
    await end('SIGKILL');
    throw error;
  }
  return {
    address,
    storage,
    caFile: tls === undefined ? undefined : caFile,
    rootToken: keys.rootToken,
    unsealKey: keys.unsealKey,
    pid: () => {
      if (child?.pid === undefined) throw new Error('this Vault does not run');
      return child.pid;
    },
    log: () => readFileSync(logFile, 'utf8'),
    request: call,
    root,
    seal: async () => {
      await root('PUT', 'sys/seal');
    },
    unseal,
    active,
    stop: () => end('SIGTERM'),
    kill: () => end('SIGKILL'),
    start: async ({ unseal: wanted = true } = {}) => {
      if (storage === 'inmem') throw new Error('a Vault in memory has forgotten everything: start a new one');
      await start();
      if (wanted) await unseal();
    },
    freeze: async () => {
      child?.kill('SIGSTOP');
      // A process with many threads stops a moment later.
      const answers = () =>
        call({ method: 'GET', path: 'sys/health', timeoutMs: 200 }).then(
          () => true,
          () => false,
        );
      while (await answers());
    },
    thaw: () => void child?.kill('SIGCONT'),
  };
}

async function writeConfiguration({ dir, storage, tls }: VaultServerOptions, port: number): Promise<string> {
  const data = path.join(dir, 'data');
  if (storage !== 'inmem') await mkdir(data, { recursive: true, mode: 0o700 });
  const scheme = tls === undefined ? 'http' : 'https';
  const listener: Record<string, unknown> = { address: `127.0.0.1:${port}`, tls_disable: tls === undefined };
  if (tls !== undefined) {
    const [cert, key] = [path.join(dir, 'server.pem'), path.join(dir, 'server-key.pem')];
    await writeFile(cert, tls.cert);
    await writeFile(key, tls.key, { mode: 0o600 });
    Object.assign(listener, { tls_cert_file: cert, tls_key_file: key });
  }
  const config: Record<string, unknown> = {
    storage: { [storage]: storage === 'inmem' ? {} : { path: data, ...(storage === 'raft' ? raftNode : {}) } },
    api_addr: `${scheme}://127.0.0.1:${port}`,
    // Locked memory takes a capability that a development machine rarely gives.
    disable_mlock: true,
    ui: false,
  };
  if (storage === 'raft') {
    const cluster = await freePort();
    listener['cluster_address'] = `127.0.0.1:${cluster}`;
    config['cluster_addr'] = `https://127.0.0.1:${cluster}`;
  }
  config['listener'] = { tcp: listener };
  const file = path.join(dir, 'config.json');
  await writeFile(file, JSON.stringify(config, null, 2));
  return file;
}

/** One node elects itself; with 1 it waits a second for others instead of five. */
const raftNode = { node_id: 'node', performance_multiplier: 1 };

/** The keys from the first start, or those of a server that is new now. */
async function keysOf(call: VaultServer['request'], file: string): Promise<Keys> {
  const { json } = await call({ method: 'GET', path: 'sys/init' });
  if (json['initialized'] === true) {
    const kept = await readFile(file, 'utf8').catch(() => undefined);
    if (kept === undefined)
      throw new Error(`this Vault was made before, and ${file} with its keys is gone: delete the folder`);
    return JSON.parse(kept) as Keys;
  }
  const answer = await call({ method: 'PUT', path: 'sys/init', body: { secret_shares: 1, secret_threshold: 1 } });
  if (answer.status !== 200) throw new Error(`Vault could not be initialised: ${vaultErrors(answer)}`);
  const made = answer.json as { root_token: string; keys_base64: string[] };
  const keys = { rootToken: made.root_token, unsealKey: made.keys_base64[0]! };
  await writeFile(file, JSON.stringify(keys), { mode: 0o600 });
  return keys;
}
