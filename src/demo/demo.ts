import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createClient, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import { startDev, type Dev } from '../dev/dev.ts';
import { findVault } from '../dev/vault-binary.ts';
import { AuditService } from '../gen/leasehold/v1/audit_service_pb.js';
import { CredentialService } from '../gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../gen/leasehold/v1/task_service_pb.js';
import { ToolCallService } from '../gen/leasehold/v1/tool_call_service_pb.js';
import {
  createCallReporter,
  createVerifier,
  followRevocations,
  type CallReporter,
  type RevocationFollower,
} from '../verifier/index.ts';
import { startReportsTool, type ReportsTool } from './reports-tool.ts';
import { tellStory, type Cast } from './story.ts';
import { createTeller } from './teller.ts';
import { tellVaultChapter } from './vault-chapter.ts';

export interface DemoOptions {
  json: boolean;
  write: (line: string) => void;
  /** For people only: what takes long. */
  progress: (line: string) => void;
}

const skipped = 'SKIPPED: a second task, whose database login Vault makes.';

/** Plays the life of one task on real parts. False when any step failed. */
export async function runDemo(options: DemoOptions): Promise<boolean> {
  const dir = await mkdtemp(path.join(tmpdir(), 'leasehold-demo-'));
  const teller = createTeller(options.json, options.write);
  const vault = findVault(process.env, { onPath: true });
  const log: string[] = [];
  let dev: Dev | undefined;
  let tool: ReportsTool | undefined;
  let feed: RevocationFollower | undefined;
  let reporter: CallReporter | undefined;
  try {
    const progress = options.json ? () => undefined : options.progress;
    const started = ['A database', ...('binary' in vault ? ['a Vault'] : []), 'a trust domain'].join(', ');
    await teller.step('start', `${started} and a broker start on this machine.`, async () => {
      dev = await startDev({
        dir,
        progress,
        write: (line) => log.push(line),
        ...('binary' in vault && { vault: { binary: vault.binary } }),
      });
      feed = followRevocations({ baseUrl: dev.httpUrl, token: () => readToken(dev!, 'reports') });
      await feed.ready();
      const verifier = createVerifier({
        issuer: dev.httpUrl,
        audience: 'https://reports.dev.leasehold.test',
        jwks: `${dev.httpUrl}/.well-known/jwks.json`,
        feed,
      });
      reporter = createCallReporter({ baseUrl: dev.httpUrl, token: () => readToken(dev!, 'reports') });
      const onUnreported = (error: unknown) => void log.push(`the tool could not report a call: ${String(error)}\n`);
      tool = await startReportsTool({ verifier, reporter, onUnreported });
      return { grpc: `127.0.0.1:${dev.broker.grpcPort}`, http: dev.httpUrl, tool: tool.url };
    });
    const cast = castOf(dev!, tool!);
    await tellStory(teller, cast);
    if ('binary' in vault) await tellVaultChapter(teller, cast, dev!.vault!);
    else await teller.step('vault', skipped, () => Promise.resolve({ skipped: vault.missing }));
  } catch (error) {
    if (teller.ok()) throw error;
    options.progress(`the demo stopped there; the broker's last lines:\n${log.slice(-15).join('')}`);
  } finally {
    await feed?.close();
    await tool?.stop();
    await reporter?.close();
    await dev?.stop();
    await rm(dir, { recursive: true, force: true });
  }
  return teller.ok();
}

function readToken(dev: Dev, name: string): string {
  return readFileSync(dev.tokens[name]!, 'utf8');
}

function castOf(dev: Dev, tool: ReportsTool): Cast {
  const as = (name: string) => {
    const authorize: Interceptor = (next) => (request) => {
      request.header.set('authorization', `Bearer ${readToken(dev, name)}`);
      return next(request);
    };
    return createConnectTransport({ baseUrl: dev.httpUrl, httpVersion: '1.1', interceptors: [authorize] });
  };
  return {
    orchestrator: createClient(TaskService, as('orchestrator')),
    agent: createClient(CredentialService, as('analyst')),
    calls: createClient(ToolCallService, as('analyst')),
    auditor: createClient(AuditService, as('auditor')),
    toolUrl: tool.url,
  };
}
