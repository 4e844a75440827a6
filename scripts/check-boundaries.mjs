// Runs the import rules of .dependency-cruiser.cjs, and fails when it read fewer modules than the project has: a tool
// that reads nothing is green.
import { createRequire } from 'node:module';
import { readdirSync } from 'node:fs';
import { cruise } from 'dependency-cruiser';
import extractTSConfig from 'dependency-cruiser/config-utl/extract-ts-config';

const floor = 40;
const config = createRequire(import.meta.url)('../.dependency-cruiser.cjs');
const sources = readdirSync('src', { recursive: true, encoding: 'utf8' }).filter(
  (name) => name.endsWith('.ts') && !name.endsWith('.d.ts'),
);
const { output } = await cruise(
  ['src', 'test', 'bench'].filter((name) => readdirSync('.').includes(name)),
  { ...config.options, ruleSet: { forbidden: config.forbidden }, validate: true },
  undefined,
  { tsConfig: extractTSConfig('tsconfig.json') },
);

const read = output.modules.filter((module) => /^src\/.*\.ts$/.test(module.source) && !module.source.endsWith('.d.ts'));
const problems = output.summary.violations.map(
  (violation) =>
    `${violation.from} → ${violation.cycle?.map((step) => step.name).join(' → ') ?? violation.to}: ${violation.rule.name}`,
);
const linked = read.filter((module) => module.dependencies.length > 0).length;
if (read.length < Math.max(floor, sources.length)) {
  problems.push(`only ${read.length} modules of src were read; there are ${sources.length}, and the floor is ${floor}`);
}
if (linked < floor / 2) problems.push(`only ${linked} modules of src have imports: the compiler was not understood`);
for (const problem of problems) console.error(problem);
console.log(
  `${read.length} modules of src, ${output.summary.totalDependenciesCruised} imports, ${problems.length} problems`,
);
process.exitCode = problems.length === 0 ? 0 : 1;
