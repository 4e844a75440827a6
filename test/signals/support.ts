import { cp } from 'node:fs/promises';
import path from 'node:path';
import type { Client } from '@connectrpc/connect';
import { RevocationService } from '../../src/gen/leasehold/v1/revocation_service_pb.js';
import { SignalService } from '../../src/gen/leasehold/v1/signal_service_pb.js';
import { parties, prepareEstate, type Parties } from '../e2e/support.ts';
import { startInProcess, type TestEstate } from '../support/broker.ts';

export interface SignalEstate extends Parties {
  estate: TestEstate;
  log: string[];
  scanner: Client<typeof SignalService>;
  operator: Client<typeof SignalService>;
  stop(): Promise<void>;
}

export const fixtures = path.join(import.meta.dirname, 'fixtures');

export async function signalEstate(label: string, overrides: Record<string, object> = {}): Promise<TestEstate> {
  const estate = await prepareEstate(label, overrides);
  await cp(path.join(fixtures, 'signals.yaml'), path.join(estate.policyDir, 'signals.yaml'));
  return estate;
}

export async function serveSignals(label: string, overrides: Record<string, object> = {}): Promise<SignalEstate> {
  const estate = await signalEstate(label, overrides);
  const broker = await startInProcess(estate);
  return {
    estate,
    log: broker.log,
    ...parties(estate),
    scanner: estate.client(SignalService, 'scanner'),
    operator: estate.client(SignalService, 'operator'),
    stop: async () => {
      await broker.stop(500);
      await estate.remove();
    },
  };
}

/** What a tool that follows the feed refuses: ids of leases and of tasks. */
export function followFeed(estate: TestEstate, port?: number): { revoked: Set<string>; stop: () => void } {
  const abort = new AbortController();
  const revoked = new Set<string>();
  const feed = estate.client(RevocationService, 'tool/reports', port);
  void (async () => {
    for await (const { revocations } of feed.watchRevocations({}, { signal: abort.signal })) {
      for (const { subject } of revocations) revoked.add(subject.value!);
    }
  })().catch(() => undefined);
  return { revoked, stop: () => abort.abort() };
}
