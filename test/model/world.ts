import { rm, cp, mkdir } from 'node:fs/promises';
import path from 'node:path';
import type { DescService } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient, type Client, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import pg from 'pg';
import { loadConfig } from '../../src/config/load-config.ts';
import { devTrustDomainName, devWorkload } from '../../src/dev/environment.ts';
import { freePort } from '../../src/dev/postgres.ts';
import { openDevTrustDomain } from '../../src/dev/trust-domain.ts';
import { ErrorInfoSchema } from '../../src/gen/google/rpc/error_details_pb.js';
import { ApprovalService } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService, type Credential } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { LockService } from '../../src/gen/leasehold/v1/lock_service_pb.js';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { SignalService } from '../../src/gen/leasehold/v1/signal_service_pb.js';
import { startBroker } from '../../src/root.ts';
import { createEstate } from '../support/broker.ts';
import { createEstateClock, estateTimeOptions, type EstateClock } from './clock.ts';
import type { Access, AgentName } from './reference.ts';

export interface Replica {
  tasks: Client<typeof TaskService>;
  agents: Record<AgentName, Client<typeof CredentialService>>;
  /** The agents, as those who open tasks. */
  openers: Record<AgentName, Client<typeof TaskService>>;
  approver: Client<typeof ApprovalService>;
  locks: Client<typeof LockService>;
  signals: Record<SignalSource, Client<typeof SignalService>>;
  policy: Client<typeof PolicyService>;
  /** Its clock is ahead of the estate's by this, milliseconds. */
  clock: { ahead: number };
  /** Whether it says that it can issue. */
  ready(): Promise<boolean>;
}

export const signalSources = ['scanner', 'operator'] as const;
export type SignalSource = (typeof signalSources)[number];

const tokenLife = 3_600_000;

export interface World {
  replicas: readonly [Replica, Replica];
  clock: EstateClock;
  /** Superuser, in the brokers' database. */
  database: pg.Client;
  /** Superuser, in the target. */
  target: pg.Client;
  stop(): Promise<void>;
}

/** Two replicas on one database and one target, each with a clock of its own. */
export async function startWorld(): Promise<World> {
  const unbounded = { callsPerSecond: 1_000_000, burst: 1_000_000 };
  const estate = await createEstate('model', {
    tasks: { renewalOverlap: '1s' },
    approvals: {
      groups: { people: [devWorkload('approver/pat')] },
      maxPending: 1_000,
      requestsPerHour: 100_000,
    },
  });
  const policy = path.join(estate.policyDir);
  await rm(policy, { recursive: true });
  await mkdir(policy);
  await cp(path.join(import.meta.dirname, 'fixtures', 'model.yaml'), path.join(policy, 'model.yaml'));
  const connect = async (url: string, options?: string) => {
    const client = new pg.Client({ connectionString: url, ...(options === undefined ? {} : { options }) });
    await client.connect();
    return client;
  };
  const database = await connect(estate.databaseUrl, '-c search_path=leasehold');
  const target = await connect(estate.targetUrl);
  const time = await createEstateClock(database);
  const brokerUrl = new URL(estate.brokerUrl);
  brokerUrl.searchParams.set('options', estateTimeOptions);
  const trustDomain = await openDevTrustDomain(path.join(estate.dir, 'trust-domain'), devTrustDomainName, time);
  const client = <S extends DescService>(service: S, workload: string, port: number): Client<S> => {
    let token: Promise<string> | undefined;
    let goodUntil = 0;
    const authorize: Interceptor = (next) => async (request) => {
      if (time.now() >= goodUntil) {
        goodUntil = time.now() + tokenLife / 2;
        token = trustDomain.mint({ workload: devWorkload(workload), audience: 'leasehold', ttl: tokenLife });
      }
      request.header.set('authorization', `Bearer ${await token!}`);
      return await next(request);
    };
    const baseUrl = `http://127.0.0.1:${port}`;
    return createClient(service, createConnectTransport({ baseUrl, httpVersion: '1.1', interceptors: [authorize] }));
  };
  const brokers: { stop(graceMs?: number): Promise<void> }[] = [];
  const replica = async (): Promise<Replica> => {
    const [grpcPort, httpPort] = [await freePort(), await freePort()];
    const clock = { ahead: 0 };
    const config = loadConfig({ path: estate.configFile, env: process.env });
    const server = {
      ...config.server,
      grpc: { ...config.server.grpc, port: grpcPort },
      http: { ...config.server.http, port: httpPort },
      limits: { ...config.server.limits, ...unbounded },
    };
    brokers.push(
      await startBroker({
        config: {
          ...config,
          server,
          database: { ...config.database!, url: { ...config.database!.url, read: () => brokerUrl.href } },
        },
        clock: { now: () => time.now() + clock.ahead },
        write: () => undefined,
      }),
    );
    return {
      clock,
      tasks: client(TaskService, 'orchestrator', httpPort),
      agents: {
        alpha: client(CredentialService, 'agent/alpha', httpPort),
        beta: client(CredentialService, 'agent/beta', httpPort),
      },
      openers: {
        alpha: client(TaskService, 'agent/alpha', httpPort),
        beta: client(TaskService, 'agent/beta', httpPort),
      },
      approver: client(ApprovalService, 'approver/pat', httpPort),
      locks: client(LockService, 'operator', httpPort),
      signals: {
        scanner: client(SignalService, 'scanner', httpPort),
        operator: client(SignalService, 'operator', httpPort),
      },
      policy: client(PolicyService, 'auditor', httpPort),
      ready: async () => (await fetch(`http://127.0.0.1:${httpPort}/readyz`)).ok,
    };
  };
  const replicas = [await replica(), await replica()] as const;
  return {
    replicas,
    clock: time,
    database,
    target,
    stop: async () => {
      await Promise.all(brokers.map((broker) => broker.stop(500)));
      await Promise.all([database.end(), target.end()]);
      await estate.remove();
    },
  };
}

export function toolAndTier(access: Access): { tool: string; tier: Tier } {
  const [tool, tier] = access.split(':') as [string, 'read' | 'write' | 'execute'];
  return { tool, tier: { read: Tier.READ, write: Tier.WRITE, execute: Tier.EXECUTE }[tier] };
}

export interface Refused {
  code: keyof typeof Code;
  reason: string;
  approval: string | undefined;
}

/** What the broker answered, or how it refused. Anything that is no refusal (a crash, an unknown error) is thrown. */
export async function answered<T>(call: Promise<T>): Promise<{ answer: T } | { refused: Refused }> {
  try {
    return { answer: await call };
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    const info = error.findDetails(ErrorInfoSchema)[0];
    // INTERNAL is a fault of the broker's, and an answer without a reason is none of its own.
    if (info === undefined || info.reason === 'INTERNAL') throw error;
    return {
      refused: {
        code: Code[error.code] as keyof typeof Code,
        reason: info.reason,
        approval: info.metadata['approval'],
      },
    };
  }
}

/** The part of a credential that must be found nowhere in the broker's database, and its login if it is one. */
export function secretOf({ material }: Credential): { secrets: string[]; role: string | undefined } {
  switch (material.case) {
    case 'accessToken':
      return { secrets: [material.value.token.split('.')[2]!], role: undefined };
    case 'postgresLogin':
      return { secrets: [material.value.password], role: material.value.username };
    default:
      throw new Error(`a credential without known material: ${String(material.case)}`);
  }
}
