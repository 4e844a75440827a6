import type { DescMethod, DescMethodUnary, Message, MessageInitShape } from '@bufbuild/protobuf';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import type { ChannelCredentials, ServiceError } from '@grpc/grpc-js';
import { Client, Metadata, credentials } from '@grpc/grpc-js';
import type { Caller } from '../../src/domain/caller.ts';
import { roles } from '../../src/domain/caller.ts';
import { BrokerError } from '../../src/domain/errors.ts';
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from '../../src/gen/google/rpc/error_details_pb.js';
import { StatusSchema } from '../../src/gen/google/rpc/status_pb.js';
import { createObservability } from '../../src/observability/observability.ts';
import type { Doors, DoorsOptions } from '../../src/server/doors.ts';
import { createDoors } from '../../src/server/doors.ts';
import { trivialServices } from './support-doors-services.ts';

export const token = 'all-roles';

/** `all-roles` may do everything; `role-<name>` has that role; anything else is refused. */
export async function authenticate(presented: string): Promise<Caller> {
  const held = presented === token ? roles : roles.filter((role) => presented === `role-${role}`);
  if (held.length === 0) throw new BrokerError('ATTESTATION_INVALID', 'The token is not one that is known here.');
  return {
    workload: `spiffe://test/${presented}`,
    tenant: 'default',
    kind: 'jwt-svid',
    issuer: 'test',
    expiresAt: Date.now() + 60_000,
    roles: new Set(held),
    agents: new Set(),
  };
}

export interface TestDoors {
  doors: Doors;
  grpcPort: number;
  httpPort: number;
  /** Log lines so far. */
  logs: string[];
  /** Parsed log lines of one event. */
  events: (name: string) => Record<string, unknown>[];
}

export async function startDoors(options: Partial<DoorsOptions> = {}): Promise<TestDoors> {
  const logs: string[] = [];
  const observability = createObservability({ level: 'debug', format: 'json', write: (line) => logs.push(line) });
  const doors = createDoors({
    grpc: { host: '127.0.0.1', port: 0 },
    http: { host: '127.0.0.1', port: 0 },
    services: trivialServices(),
    authenticate,
    clock: { now: () => Date.now() },
    ready: () => ({ ready: true, components: [{ name: 'storage', ready: true, detail: 'connected' }] }),
    observability,
    ...options,
  });
  const ports = await doors.start();
  const events = (name: string) =>
    logs.map((line) => JSON.parse(line) as Record<string, unknown>).filter(({ event }) => event === name);
  return { doors, ...ports, logs, events };
}

export function metadata(authorization: string | undefined = `Bearer ${token}`): Metadata {
  const headers = new Metadata();
  if (authorization !== '') headers.set('authorization', authorization);
  return headers;
}

/** What a gRPC client makes of an error: its code and the reasons in its details. */
export interface GrpcFailure {
  code: number;
  message: string;
  reason: string | undefined;
  fields: string[];
  retryMs: number | undefined;
}

export function grpcFailure(error: ServiceError): GrpcFailure {
  const bytes = error.metadata.get('grpc-status-details-bin')[0];
  const details = bytes === undefined ? [] : fromBinary(StatusSchema, bytes as Buffer).details;
  const find = (name: string) =>
    details.find(({ typeUrl }) => typeUrl === `type.googleapis.com/google.rpc.${name}`)?.value;
  const info = find('ErrorInfo');
  const bad = find('BadRequest');
  const retry = find('RetryInfo');
  const delay = retry === undefined ? undefined : fromBinary(RetryInfoSchema, retry).retryDelay;
  return {
    code: error.code,
    message: error.details,
    reason: info === undefined ? undefined : fromBinary(ErrorInfoSchema, info).reason,
    fields: bad === undefined ? [] : fromBinary(BadRequestSchema, bad).fieldViolations.map(({ field }) => field),
    retryMs: delay === undefined ? undefined : Number(delay.seconds) * 1_000 + delay.nanos / 1_000_000,
  };
}

export type GrpcResult = { answer: Message } | { failure: GrpcFailure };

/** A plain grpc-js client over the descriptors. */
export function grpcClient(
  port: number,
  channel: ChannelCredentials = credentials.createInsecure(),
  host = '127.0.0.1',
) {
  const client = new Client(`${host}:${port}`, channel);
  const path = (method: DescMethod) => `/${method.parent.typeName}/${method.name}`;
  const raw = (method: DescMethod, bytes: Uint8Array, headers: Metadata, deadlineMs?: number): Promise<GrpcResult> =>
    new Promise((resolve) => {
      const options = deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
      const deserialize = (received: Buffer) => fromBinary(method.output, received);
      if (method.methodKind === 'unary') {
        client.makeUnaryRequest(path(method), Buffer.from, deserialize, bytes, headers, options, (error, answer) =>
          resolve(error === null ? { answer: answer! } : { failure: grpcFailure(error) }),
        );
        return;
      }
      let first: Message | undefined;
      const stream = client.makeServerStreamRequest(path(method), Buffer.from, deserialize, bytes, headers, options);
      stream.on('data', (message: Message) => (first ??= message));
      stream.on('error', (error: ServiceError) => resolve({ failure: grpcFailure(error) }));
      stream.on('end', () => first !== undefined && resolve({ answer: first }));
    });
  return {
    client,
    raw,
    call: <M extends DescMethodUnary>(
      method: M,
      init: MessageInitShape<M['input']>,
      headers = metadata(),
      deadlineMs?: number,
    ) => raw(method, toBinary(method.input, create(method.input, init as never)), headers, deadlineMs),
    stream: (method: DescMethod, init: object = {}, headers = metadata()) =>
      client.makeServerStreamRequest(
        path(method),
        Buffer.from,
        (received: Buffer) => fromBinary(method.output, received),
        toBinary(method.input, create(method.input, init as never)),
        headers,
      ),
    close: () => client.close(),
  };
}

export interface HttpResult {
  status: number;
  headers: Headers;
  body: { code?: string; message?: string; details?: { type: string; value: string; debug?: object }[] } & Record<
    string,
    unknown
  >;
}

/** As curl would: JSON over HTTP/1.1. */
export async function post(
  port: number,
  path: string,
  body: unknown,
  headers: Record<string, string> = { authorization: `Bearer ${token}` },
): Promise<HttpResult> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' || body instanceof Uint8Array ? (body as string) : JSON.stringify(body),
  });
  const text = await response.text();
  return { status: response.status, headers: response.headers, body: text === '' ? {} : JSON.parse(text) };
}

export function reasonOf({ body }: HttpResult): string | undefined {
  const info = body.details?.find(({ type }) => type === 'google.rpc.ErrorInfo');
  return info === undefined ? undefined : fromBinary(ErrorInfoSchema, Buffer.from(info.value, 'base64')).reason;
}

export const everyMethod: DescMethod[] = trivialServices().flatMap(({ desc }) => desc.methods);
