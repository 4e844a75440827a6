import { readdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { parseDocument } from 'yaml';
import { PolicyService } from '../../src/gen/leasehold/v1/policy_service_pb.js';
import { freePort } from '../../src/dev/postgres.ts';
import { createEstate, type TestEstate } from '../support/broker.ts';

export interface PolicyText {
  path: string;
  content: Uint8Array;
}

/** An estate whose policy is applied through the API, and the files that its directory would have held. */
export async function databaseEstate(label: string): Promise<TestEstate & { files: () => Promise<PolicyText[]> }> {
  const estate = await createEstate(label, { tasks: { renewalOverlap: '1s' } });
  await editConfig(estate.configFile, (config) => config.set('policy', { source: 'database' }));
  return { ...estate, files: () => filesOf(estate.policyDir) };
}

/** A second configuration for the same estate: another replica, on ports of its own. */
export async function replicaConfig(estate: TestEstate): Promise<{ configFile: string; httpPort: number }> {
  const [grpcPort, httpPort] = [await freePort(), await freePort()];
  const configFile = path.join(estate.dir, 'replica.yaml');
  await writeFile(configFile, await readFile(estate.configFile, 'utf8'), { mode: 0o600 });
  await editConfig(configFile, (config) => {
    config.setIn(['server', 'grpc', 'listen'], `127.0.0.1:${grpcPort}`);
    config.setIn(['server', 'http', 'listen'], `127.0.0.1:${httpPort}`);
  });
  return { configFile, httpPort };
}

async function editConfig(file: string, edit: (config: ReturnType<typeof parseDocument>) => void): Promise<void> {
  const document = parseDocument(await readFile(file, 'utf8'));
  edit(document);
  await writeFile(file, String(document), { mode: 0o600 });
}

export async function filesOf(directory: string): Promise<PolicyText[]> {
  const names = (await readdir(directory)).filter((name) => name.endsWith('.yaml')).sort();
  return await Promise.all(
    names.map(async (name) => ({ path: name, content: await readFile(path.join(directory, name)) })),
  );
}

export function edited(files: readonly PolicyText[], name: string, edit: (text: string) => string): PolicyText[] {
  return files.map((file) => {
    if (file.path !== name) return file;
    const before = Buffer.from(file.content).toString('utf8');
    const after = edit(before);
    if (after === before) throw new Error(`the edit of ${name} changes nothing`);
    return { path: file.path, content: Buffer.from(after) };
  });
}

export function operator(estate: TestEstate, port?: number) {
  return estate.client(PolicyService, 'operator', port);
}
