import type { Service } from '../api/call.ts';
import type { Chain } from '../api/chain/chain.ts';
import { createChain } from '../api/chain/chain.ts';
import type { Authenticate } from '../api/chain/identity.ts';
import type { Clock } from '../domain/time.ts';
import type { Observability } from '../observability/observability.ts';
import type { GrpcDoor } from './grpc.ts';
import { createGrpcDoor } from './grpc.ts';
import type { HttpRoute, Readiness } from './http-route.ts';
import { builtInRoutes } from './http-route.ts';
import { createHttpDoor } from './http.ts';
import type { DoorLimits, DoorListen } from './options.ts';
import { defaultLimits } from './options.ts';

export interface DoorsOptions {
  grpc: DoorListen;
  http: DoorListen;
  /** Those not given are `defaultLimits`. */
  limits?: Partial<DoorLimits>;
  services: readonly Service[];
  authenticate: Authenticate;
  clock: Clock;
  /** Cheap: asked about every second, and by /readyz. */
  ready: () => Readiness;
  /** Served on the HTTP door beside the RPCs, /healthz, /readyz and /metrics. */
  routes?: readonly HttpRoute[];
  corsOrigins?: readonly string[];
  /** Host names that the HTTP door answers to; empty for any. */
  hosts?: readonly string[];
  /** gRPC reflection; on by default: the contract is public. */
  reflection?: boolean;
  /** How often certificate files are looked at. */
  tlsReloadMs?: number;
  observability: Observability;
}

export interface Doors {
  /** Throws StartError, saying what to change, when it cannot. */
  start(): Promise<{ grpcPort: number; httpPort: number }>;
  /** Reads certificates now, without waiting for the next look. */
  reloadTls(): Promise<void>;
  /**
   * Ends within `graceMs`: not ready, no new calls, streams told, calls in flight finished, connections closed. What is
   * left at the end is refused and cut off. Calling it again waits for the same stop.
   */
  stop(graceMs: number): Promise<void>;
  /** For the composition root's own status. */
  load(): { unary: number; streams: number };
}

const readinessMs = 1_000;
/** Kept back from the grace for closing connections after the last call has ended. */
const closeMs = 500;

/** The two doors (design §4): one implementation and one chain behind both. */
export function createDoors(options: DoorsOptions): Doors {
  const { services, observability } = options;
  const { emit } = observability;
  const limits = { ...defaultLimits, ...options.limits };
  const chain = createChain({ ...options, limits });
  const ready = (): Readiness => {
    const { ready: isReady, components } = options.ready();
    return chain.load.stopping
      ? { ready: false, components: [...components, { name: 'doors', ready: false, detail: 'stopping' }] }
      : { ready: isReady, components };
  };
  const shared = { chain, limits, emit, tlsReloadMs: options.tlsReloadMs ?? 10_000 };
  const grpc = createGrpcDoor({ ...shared, listen: options.grpc, services, reflection: options.reflection ?? true });
  const http = createHttpDoor({
    ...shared,
    listen: options.http,
    routes: [...builtInRoutes({ ...observability, ready }), ...(options.routes ?? [])],
    corsOrigins: options.corsOrigins ?? [],
    hosts: options.hosts ?? [],
  });
  observability.gauge('rpc_in_flight', 'Unary RPCs in work.', () => chain.load.unary.size);
  observability.gauge('rpc_streams_open', 'Streams that are open.', () => chain.load.streams.size);
  observability.gauge('ready', 'Whether this replica can issue.', () => (ready().ready ? 1 : 0));

  const watch = watchReadiness(ready, grpc, emit);
  let stopping: Promise<void> | undefined;

  async function stop(graceMs: number): Promise<void> {
    const startedAt = performance.now();
    const left = (): number => Math.max(0, graceMs - (performance.now() - startedAt));
    emit('broker.stopping', { graceMs, unary: chain.load.unary.size, streams: chain.load.streams.size });
    watch.stop();
    chain.stop();
    grpc.setServing(false);
    await drained(chain, Math.max(0, left() - closeMs));
    const forced = chain.load.unary.size > 0;
    chain.abandon();
    // Time for the last answers to leave, even when the grace is used up by calls that did not end.
    const waitMs = Math.min(closeMs, Math.max(left(), 50));
    await Promise.all([grpc.close(waitMs), http.close(waitMs)]);
    emit('broker.stopped', { forced, durationMs: Math.round(performance.now() - startedAt) });
  }

  return {
    async start() {
      try {
        const [grpcPort, httpPort] = await Promise.all([grpc.open(), http.open()]);
        watch.start();
        return { grpcPort, httpPort };
      } catch (error) {
        await Promise.all([grpc.close(0), http.close(0)]);
        throw error;
      }
    },
    reloadTls: async () => void (await Promise.all([grpc.reloadTls(), http.reloadTls()])),
    stop: (graceMs) => (stopping ??= stop(graceMs)),
    load: () => ({ unary: chain.load.unary.size, streams: chain.load.streams.size }),
  };
}

/** Keeps the gRPC health service at what /readyz says, and tells operators of a change. */
function watchReadiness(ready: () => Readiness, grpc: GrpcDoor, emit: Observability['emit']) {
  let last: boolean | undefined;
  let timer: NodeJS.Timeout | undefined;
  const look = (): void => {
    const { ready: isReady, components } = ready();
    if (isReady === last) return;
    last = isReady;
    grpc.setServing(isReady);
    const notReady = components.filter((component) => !component.ready).map(({ name }) => name);
    emit('readiness.changed', { ready: isReady, notReady });
  };
  return {
    start() {
      look();
      timer = setInterval(look, readinessMs).unref();
    },
    stop: () => clearInterval(timer),
  };
}

/** Until no unary call is in work, or the time is up. */
async function drained(chain: Chain, waitMs: number): Promise<void> {
  const until = performance.now() + waitMs;
  while (chain.load.unary.size > 0 && performance.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(10, Math.max(1, until - performance.now()))));
  }
}
