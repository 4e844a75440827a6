import type { ServiceDefinition, UntypedServiceImplementation } from '@grpc/grpc-js';
import { Server, ServerCredentials, ServerInterceptingCall, logVerbosity, setLogVerbosity } from '@grpc/grpc-js';
import { HealthImplementation } from 'grpc-health-check';
import { createServer as createTcpServer } from 'node:net';
import type { Server as TcpServer, Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import type { Server as TlsServer } from 'node:tls';
import type { Chain } from '../api/chain/chain.ts';
import type { Method } from '../api/chain/describe.ts';
import { shuttingDown } from '../api/chain/load.ts';
import type { Service } from '../api/call.ts';
import { BrokerError } from '../domain/errors.ts';
import type { Emit } from '../observability/observability.ts';
import type { LibraryCall } from './grpc-call.ts';
import { GrpcCall, statusOf } from './grpc-call.ts';
import type { Sockets } from './listener.ts';
import { listenOn, trackSockets } from './listener.ts';
import type { DoorLimits, DoorListen } from './options.ts';
import { checkPlaintext } from './options.ts';
import { reflectionOf } from './reflection.ts';
import type { TlsSource } from './tls.ts';
import { clientCertificates, contextOf, openTls } from './tls.ts';

export interface GrpcDoorOptions {
  listen: DoorListen;
  services: readonly Service[];
  chain: Chain;
  limits: DoorLimits;
  reflection: boolean;
  tlsReloadMs: number;
  emit: Emit;
}

/** One of the two doors: opened once, told whether it serves, closed once. */
export interface GrpcDoor {
  open(): Promise<number>;
  setServing(serving: boolean): void;
  reloadTls(): Promise<void>;
  /** Ends what is left and closes all connections; peers that do not go by themselves are cut off after `waitMs`. */
  close(waitMs: number): Promise<void>;
}

/** Health and reflection calls at once: unauthenticated, so bounded apart from the rest. */
const maxAuxiliary = 1_000;

export function createGrpcDoor(options: GrpcDoorOptions): GrpcDoor {
  const { listen, services, chain, limits, emit } = options;
  checkPlaintext('gRPC', listen);
  // The library writes headers that it cannot parse to the console, tokens among them.
  setLogVerbosity(logVerbosity.NONE);

  const methods = new Map(chain.methods.map((method) => [method.path, method]));
  const bytesOf = (method: Method) => Math.max(limits.maxMessageBytes, method.maxMessageBytes);
  const widest = Math.max(limits.maxMessageBytes, ...chain.methods.map(bytesOf));
  const receiving = new Set<GrpcCall>();
  const auxiliary = new Set<LibraryCall>();

  const server = new Server({
    'grpc.enable_channelz': 0,
    // The widest of all methods; each call is held to its own.
    'grpc.max_receive_message_length': widest,
    'grpc.max_send_message_length': -1,
    'grpc.max_concurrent_streams': limits.maxStreamsPerConnection,
    'grpc.max_connection_idle_ms': limits.idleTimeoutMs,
    'grpc.keepalive_time_ms': limits.keepaliveMs,
    'grpc.keepalive_timeout_ms': limits.keepaliveTimeoutMs,
    interceptors: [
      (definition, call) => {
        const method = methods.get(definition.path);
        if (method === undefined) return auxiliaryCall(call as LibraryCall);
        const served = new GrpcCall(call as LibraryCall, method, chain, bytesOf(method), receiving);
        // The library's own handler layer above this is never begun.
        return new ServerInterceptingCall(call, { start: () => call.start(served) });
      },
    ],
  });
  for (const method of methods.values()) {
    const type = method.kind === 'unary' ? 'unary' : 'serverStream';
    server.register(method.path, () => undefined, identity, identity, type);
  }
  const health = new HealthImplementation();
  health.addToServer({
    addService: (definition, implementation) =>
      server.addService(definition as ServiceDefinition, implementation as unknown as UntypedServiceImplementation),
  } as Parameters<HealthImplementation['addToServer']>[0]);
  if (options.reflection) reflectionOf(services).addToServer(server);

  function auxiliaryCall(call: LibraryCall): ServerInterceptingCall {
    return new ServerInterceptingCall(call as ServerInterceptingCall, {
      start(next) {
        if (chain.load.stopping) return call.sendStatus(statusOf(shuttingDown()));
        if (auxiliary.size >= maxAuxiliary) {
          return call.sendStatus(statusOf(new BrokerError('RATE_LIMITED', 'Too many health and reflection calls.')));
        }
        auxiliary.add(call);
        next({ onCancel: () => auxiliary.delete(call) });
      },
    });
  }

  // Our own listener, so that the TLS context can be replaced and every socket be ended; the library takes connections.
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const take = (socket: Socket): void => {
    socket.setNoDelay(true);
    injector.injectConnection(socket);
  };
  let listener: TcpServer | TlsServer | undefined;
  let sockets: Sockets | undefined;
  let tls: TlsSource | undefined;
  let sweep: NodeJS.Timeout | undefined;

  function expireSlow(): void {
    const limit = performance.now() - limits.requestTimeoutMs;
    for (const call of receiving) if (call.receivingSince < limit) call.expire();
  }

  return {
    async open() {
      if (listen.tls === undefined) {
        listener = createTcpServer(take);
      } else {
        let secure: TlsServer | undefined;
        tls = await openTls({
          door: 'grpc',
          files: listen.tls,
          intervalMs: options.tlsReloadMs,
          apply: (pair) => secure?.setSecureContext(contextOf(pair)),
          emit,
        });
        listener = secure = createTlsServer(
          {
            ...contextOf(tls.current()),
            ...clientCertificates(listen.tls),
            ALPNProtocols: ['h2'],
            handshakeTimeout: limits.headersTimeoutMs,
          },
          take,
        );
      }
      listener.maxConnections = limits.maxConnections;
      sockets = trackSockets(listener);
      sweep = setInterval(expireSlow, Math.min(1_000, limits.requestTimeoutMs)).unref();
      const port = await listenOn(listener, 'gRPC', listen);
      emit('door.opened', { door: 'grpc', host: listen.host, port, tls: tls !== undefined });
      return port;
    },
    setServing(serving) {
      const status = serving ? 'SERVING' : 'NOT_SERVING';
      health.setStatus('', status);
      for (const { desc } of services) health.setStatus(desc.typeName, status);
    },
    reloadTls: async () => tls?.reload(),
    async close(waitMs) {
      clearInterval(sweep);
      tls?.close();
      for (const call of auxiliary) call.sendStatus(statusOf(shuttingDown()));
      for (const call of receiving) call.expire();
      const closed = new Promise<void>((resolve) => {
        if (listener === undefined) resolve();
        else listener.close(() => resolve());
      });
      // Says GOAWAY on every session; each ends when its last stream has. The library's callback does not wait for that.
      server.tryShutdown(() => undefined);
      await sockets?.closeAll(waitMs);
      server.forceShutdown();
      await closed;
    },
  };
}

const identity = (bytes: Buffer): Buffer => bytes;
