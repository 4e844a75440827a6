import { createServer, type Server } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import type { Code } from '@connectrpc/connect';
import { ConnectError, type ConnectRouter, type HandlerContext, type ServiceImpl } from '@connectrpc/connect';
import { connectNodeAdapter } from '@connectrpc/connect-node';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from '../../src/gen/google/rpc/error_details_pb.js';
import { AdminService } from '../../src/gen/leasehold/v1/admin_service_pb.js';
import { AuditService } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { SettlementService } from '../../src/gen/leasehold/v1/settlement_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';

export interface Handlers {
  task?: Partial<ServiceImpl<typeof TaskService>>;
  credential?: Partial<ServiceImpl<typeof CredentialService>>;
  admin?: Partial<ServiceImpl<typeof AdminService>>;
  audit?: Partial<ServiceImpl<typeof AuditService>>;
  settlement?: Partial<ServiceImpl<typeof SettlementService>>;
}

export interface FakeBroker {
  url: string;
  stop(): Promise<void>;
}

/** A real Connect server that speaks the real contract; only what it answers is made up. */
export async function startFakeBroker(handlers: Handlers, tls?: { cert: string; key: string }): Promise<FakeBroker> {
  const routes = (router: ConnectRouter) => {
    router.service(TaskService, handlers.task ?? {});
    router.service(CredentialService, handlers.credential ?? {});
    router.service(AdminService, handlers.admin ?? {});
    router.service(AuditService, handlers.audit ?? {});
    router.service(SettlementService, handlers.settlement ?? {});
  };
  const adapter = connectNodeAdapter({ routes });
  const server: Server = tls === undefined ? createServer(adapter) : createTlsServer(tls, adapter);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${port}`,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** An error as the broker sends it: a status, and the details that say more. */
export function refusal(
  code: Code,
  reason: string,
  message: string,
  more: {
    violations?: { field: string; description: string }[];
    retryAfterMs?: number;
    metadata?: Record<string, string>;
  } = {},
): ConnectError {
  return new ConnectError(message, code, undefined, [
    { desc: ErrorInfoSchema, value: { reason, domain: 'leasehold.dev', metadata: more.metadata ?? {} } },
    ...(more.violations === undefined ? [] : [{ desc: BadRequestSchema, value: { fieldViolations: more.violations } }]),
    ...(more.retryAfterMs === undefined
      ? []
      : [{ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(more.retryAfterMs) } }]),
  ]);
}

export function bearerOf(context: HandlerContext): string | null {
  return context.requestHeader.get('authorization');
}
