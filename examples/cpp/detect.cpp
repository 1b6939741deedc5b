// Detects objects in a picture by ONNX Runtime and OpenCV: detect model.onnx street.jpg found.png
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

// What the model says of itself: each value is JSON.
nlohmann::json about(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto stored = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  if (!stored) throw std::runtime_error(std::string("the model has no metadata ") + key);
  return nlohmann::json::parse(stored.get());
}

int main(int count, char** words) try {
  if (count != 4) throw std::runtime_error("usage: detect MODEL PICTURE DRAWN");
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING);
  Ort::Session session(environment, words[1], Ort::SessionOptions());
  const auto input = about(session, "input"), resize = about(session, "resize");
  const auto classes = about(session, "classes");
  if (input["layout"] != "nhwc" || input["dtype"] != "uint8")
    throw std::runtime_error("this example is for --layout nhwc --input uint8, the defaults");

  cv::Mat picture = cv::imread(words[2]);  // BGR, turned upright
  if (picture.empty()) throw std::runtime_error(std::string(words[2]) + ": no picture");
  const double scale =
      std::min(resize["short_side"].get<double>() / std::min(picture.rows, picture.cols),
               resize["long_side"].get<double>() / std::max(picture.rows, picture.cols));
  const cv::Size size(std::floor(picture.cols * scale + 0.5),
                      std::floor(picture.rows * scale + 0.5));
  cv::Mat given;
  cv::resize(picture, given, size, 0, 0, scale < 1 ? cv::INTER_AREA : cv::INTER_LINEAR);
  if (input["channels"] == "RGB") cv::cvtColor(given, given, cv::COLOR_BGR2RGB);

  const int64_t shape[] = {1, given.rows, given.cols, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto batch = Ort::Value::CreateTensor<uint8_t>(memory, given.data, given.total() * 3,
                                                       shape, 4);
  const std::string name = input["name"];
  const char* inputs[] = {name.c_str()};
  const char* outputs[] = {"boxes", "scores", "classes", "num_detections"};
  const auto found = session.Run(Ort::RunOptions(), inputs, &batch, 1, outputs, 4);
  const auto* box = found[0].GetTensorData<float>();  // left, top, right, bottom
  const auto* score = found[1].GetTensorData<float>();
  const auto* kind = found[2].GetTensorData<int64_t>();

  const double x = double(picture.cols) / size.width, y = double(picture.rows) / size.height;
  for (int64_t i = 0; i < *found[3].GetTensorData<int64_t>(); ++i, box += 4) {
    if (score[i] <= 0.5) break;  // they come by falling score
    const cv::Point first(cvRound(box[0] * x), cvRound(box[1] * y));
    const cv::Point last(cvRound(box[2] * x), cvRound(box[3] * y));
    const std::string label = cv::format("%s %.2f", classes[kind[i]].get<std::string>().c_str(),
                                         score[i]);
    std::cout << label << ' ' << first.x << ' ' << first.y << ' ' << last.x << ' ' << last.y
              << '\n';
    cv::rectangle(picture, first, last, {0, 159, 230}, 2);
    cv::putText(picture, label, {first.x, std::max(first.y - 4, 12)}, cv::FONT_HERSHEY_SIMPLEX,
                0.5, {0, 159, 230});
  }
  return cv::imwrite(words[3], picture) ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
